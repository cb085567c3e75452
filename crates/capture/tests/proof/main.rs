//! The proof: a bank whose books are in four services and a mount is backed up while it works, and
//! what is restored of it must balance. See `stillpoint_testkit::workload` for the books, `stage`
//! for the processes around them, `broken` for participants that mark at the wrong time.
//!
//! A checker that cannot fail proves nothing. So live backups must show violations, and so must
//! held ones in which one participant's mark is of another instant than the others'.

#[path = "../common/mod.rs"]
mod common;

mod broken;
mod late;
mod soak;
mod stage;

use broken::{Broken, When};
use late::{After, Late};
use stage::Stage;
use stillpoint_capture::Participant;
use stillpoint_model::manifest::{Completeness, Consistency};
use stillpoint_testkit::workload::{self, PARTS, Traffic, Violation};

/// Of the held rounds in the suite; `cargo xtask soak still-point` takes more.
const ROUNDS: u32 = 2;

/// How many live backups may look right by chance before that is a failure.
const LIVE_ROUNDS: u32 = 10;

/// Not a test: the bank, its clients and its worker are this program, started again with the name
/// of this function.
#[test]
fn plays_the_workload() {
    workload::play();
}

#[test]
fn held_backups_are_of_one_instant() {
    let _alone = stage::alone();
    let stage = Stage::open(Traffic::FULL);
    for number in 1..=ROUNDS {
        let round = stage.held_round();
        println!("{number}: {round}");
        assert_eq!(round.violations, [], "round {number}");
        assert_eq!(round.manifest.completeness, Completeness::Complete);
        let evidence = round.manifest.evidence.as_ref().expect("a held backup has evidence");
        let [gateway] = evidence.gateways.as_slice() else { panic!("there is one gateway") };
        assert!(gateway.in_flight_at_begin > 0, "nothing was drained: {gateway:?}");
        assert!(gateway.held > 0, "nothing was held: {gateway:?}");
    }
    let (summary, jobs) = stage.close();
    assert_eq!(summary.failed, 0, "{:?}", summary.failures);
    assert!(summary.messages > 0 && jobs > 0, "{summary:?}, {jobs} jobs");
}

#[test]
fn live_backups_are_not_of_one_instant() {
    let _alone = stage::alone();
    let stage = Stage::open(Traffic::FULL);
    let shown = (1..=LIVE_ROUNDS).any(|number| {
        let round = stage.live_round();
        println!("{number}: {round}");
        assert_eq!(round.manifest.consistency, Consistency::Live);
        !round.violations.is_empty()
    });
    assert!(shown, "{LIVE_ROUNDS} live backups show nothing: the checker finds nothing");
    let (summary, _) = stage.close();
    assert_eq!(summary.failed, 0, "{:?}", summary.failures);
}

/// Two held backups in which one part's mark is of another instant: before the hold, and after the
/// release. Both must be found, and that part must be blamed, and no other.
fn is_found_and_named(part: &str) {
    let _alone = stage::alone();
    let stage = Stage::open(Traffic::LIGHT);
    for when in [When::BeforeHold, When::AfterRelease] {
        let round = stage.round_of(|participant| {
            if participant.name().as_str() == part {
                let clock = stage.clock();
                Box::new(Broken::new(participant, when, clock)) as Box<dyn Participant>
            } else {
                participant
            }
        });
        println!("{when:?}: {round}");
        let blamed: Vec<&str> = round.violations.iter().filter_map(Violation::part).collect();
        assert!(!blamed.is_empty(), "{when:?}: nothing was found");
        assert!(blamed.iter().all(|blamed| *blamed == part), "{when:?}: {blamed:?} were blamed");
    }
}

#[test]
fn a_mark_of_postgresql_at_another_instant_is_found_and_named() {
    is_found_and_named(PARTS[0]);
}

#[test]
fn a_mark_of_mariadb_at_another_instant_is_found_and_named() {
    is_found_and_named(PARTS[1]);
}

#[test]
fn a_mark_of_redis_at_another_instant_is_found_and_named() {
    is_found_and_named(PARTS[2]);
}

#[test]
fn a_mark_of_sqlite_at_another_instant_is_found_and_named() {
    is_found_and_named(PARTS[3]);
}

#[test]
fn a_mark_of_a_mount_at_another_instant_is_found_and_named() {
    is_found_and_named(PARTS[4]);
}

/// The application debits while a request is in flight, answers, and credits only then.
#[test]
fn what_is_written_just_after_an_answer_is_waited_for_or_marked_once_more() {
    let _alone = stage::alone();
    let stage = Stage::open(Traffic::NONE);
    for (after, marks) in [(After::FirstCount, 1), (After::FirstMark, 2)] {
        let round = stage.round_of(|participant| {
            if participant.name().as_str() == PARTS[3] {
                let bank = stage.clock().0;
                Box::new(Late::new(participant, after, bank)) as Box<dyn Participant>
            } else {
                participant
            }
        });
        println!("{after:?}: {round}");
        assert_eq!(round.violations, [], "{after:?}");
        assert_eq!(round.manifest.consistency, Consistency::Consistent, "{after:?}");
        let evidence = round.manifest.evidence.expect("a held backup has evidence");
        assert_eq!(evidence.mark_rounds, marks, "{after:?}");
    }
}
