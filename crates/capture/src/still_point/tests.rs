//! The machine's single rules; what holds over all of its runs is in `model`.

use super::*;

const BOUNDS: Bounds = Bounds {
    drain: Duration::from_secs(10),
    step: Duration::from_secs(5),
    settle: Duration::from_millis(200),
    max_hold: Duration::from_secs(30),
};

/// Answers every asking at once by `reply`, each a millisecond after the one before; the steps
/// asked, and how it ended.
fn run(crew: &[Rank], mut reply: impl FnMut(usize, Ask) -> Reply) -> (Vec<Step>, Ending) {
    let (mut machine, mut ask) = StillPoint::begin(BOUNDS, crew);
    let mut now = Duration::ZERO;
    let mut steps = vec![ask.step];
    loop {
        now += ask.pause;
        let mut next = Next::Wait;
        for who in 0..crew.len() {
            now += Duration::from_millis(1);
            next = machine.answer(now, who, ask.number, reply(who, ask));
            if next != Next::Wait {
                break;
            }
        }
        match next {
            Next::Wait => panic!("everyone has answered {:?}, and nothing follows", ask.step),
            Next::Over(ending) => return (steps, *ending),
            Next::Ask(following) => {
                ask = following;
                steps.push(ask.step);
            }
        }
    }
}

fn well(who: usize, ask: Ask) -> Reply {
    match ask.step {
        Step::Count => Reply::Counted(Some("1".to_owned())),
        Step::Freeze if who == 1 => Reply::Frozen,
        _ => Reply::Done,
    }
}

#[test]
fn workers_are_frozen_after_the_drain_and_thawed_before_the_release() {
    use Step::{Aim, Count, Drain, Freeze, Hold, Mark, Release, Thaw};
    let (steps, ending) = run(&[Rank::Gateway, Rank::Worker, Rank::Data], well);
    assert_eq!(steps, [Hold, Drain, Aim, Freeze, Count, Count, Mark, Count, Thaw, Release]);
    assert_eq!((ending.failure, ending.mark_rounds), (None, 1));
    let (steps, _) = run(&[Rank::Gateway, Rank::Data], well);
    assert_eq!(steps, [Hold, Drain, Count, Count, Mark, Count, Release]);
}

#[test]
fn counters_that_never_stand_still_are_waited_for_only_so_long() {
    let mut count = 0;
    let (steps, ending) = run(&[Rank::Gateway, Rank::Data], |_, ask| {
        count += 1;
        match ask.step {
            Step::Count => Reply::Counted(Some(count.to_string())),
            _ => Reply::Done,
        }
    });
    let counts = steps.iter().filter(|step| **step == Step::Count).count();
    assert!((10..=200).contains(&counts), "{counts}");
    assert!(ending.settled >= BOUNDS.settle);
    assert_eq!((ending.failure, ending.mark_rounds), (None, MARK_ROUNDS));
    assert!(!ending.moved.is_empty(), "they are told");
}

#[test]
fn a_mark_that_fails_while_workers_are_frozen_is_tried_again_after_ever_longer_thaws() {
    use Step::{Aim, Count, Drain, Freeze, Hold, Mark, Release, Thaw};
    let crew = [Rank::Gateway, Rank::Worker, Rank::Data];
    let failing = |times: usize| {
        let (mut marks, mut pauses) = (0, Vec::new());
        let (steps, ending) = run(&crew, |who, ask| {
            if ask.step == Aim && who == 0 {
                pauses.push(ask.pause.as_millis());
            }
            if (who, ask.step) != (2, Mark) {
                return well(who, ask);
            }
            marks += 1;
            if marks <= times { Reply::Failed } else { Reply::Done }
        });
        (steps, ending, pauses)
    };
    let (steps, ending, pauses) = failing(1);
    let first = [Hold, Drain, Aim, Freeze, Count, Count, Mark, Thaw];
    assert_eq!(steps[..8], first);
    assert_eq!(steps[8..], [Aim, Freeze, Count, Count, Mark, Count, Thaw, Release]);
    assert_eq!((ending.failure, pauses), (None, vec![0, 50]));
    let (_, ending, pauses) = failing(3);
    assert_eq!((ending.failure, pauses), (None, vec![0, 50, 100, 200]));
    let (steps, ending, pauses) = failing(usize::MAX);
    assert_eq!(steps.iter().filter(|step| **step == Mark).count(), TRIES);
    assert_eq!(steps[steps.len() - 3..], [Mark, Thaw, Release]);
    assert_eq!(ending.failure, Some(Failure::Failed { who: 2, step: Mark }));
    assert_eq!(pauses, [0, 50, 100, 200]);
    assert_eq!(ending.frozen, [1]);
}

#[test]
fn a_counter_that_cannot_be_read_while_workers_are_frozen_is_read_again_after_a_thaw() {
    let mut counts = 0;
    let (steps, ending) = run(&[Rank::Gateway, Rank::Worker, Rank::Data], |who, ask| {
        if (who, ask.step) != (2, Step::Count) {
            return well(who, ask);
        }
        counts += 1;
        if counts == 1 { Reply::Failed } else { well(who, ask) }
    });
    assert_eq!(steps.iter().filter(|step| **step == Step::Thaw).count(), 2);
    assert_eq!((ending.failure, ending.mark_rounds), (None, 1));
}

#[test]
fn a_mark_that_fails_while_nothing_stands_still_is_not_tried_again() {
    let mut marks = 0;
    let (_, ending) = run(&[Rank::Gateway, Rank::Worker, Rank::Data], |who, ask| match ask.step {
        // It does not run.
        Step::Freeze => Reply::Done,
        Step::Mark if who == 2 => {
            marks += 1;
            Reply::Failed
        }
        _ => well(who, ask),
    });
    assert_eq!(ending.failure, Some(Failure::Failed { who: 2, step: Step::Mark }));
    assert_eq!((marks, ending.frozen), (1, vec![]));
}

#[test]
fn a_second_mark_that_fails_is_no_still_point() {
    let (mut counts, mut marks) = (0, 0);
    let (_, ending) = run(&[Rank::Gateway, Rank::Worker, Rank::Data], |who, ask| match ask.step {
        // Settled at 1, and 2 after the first mark.
        Step::Count if who == 2 => {
            counts += 1;
            Reply::Counted(Some(if counts > 2 { "2" } else { "1" }.to_owned()))
        }
        Step::Mark if who == 2 => {
            marks += 1;
            if marks == 1 { Reply::Done } else { Reply::Failed }
        }
        _ => well(who, ask),
    });
    assert_eq!(ending.failure, Some(Failure::Failed { who: 2, step: Step::Mark }));
}

#[test]
fn who_is_late_is_left_behind_and_everyone_else_is_released_at_once() {
    let crew = [Rank::Gateway, Rank::Data, Rank::Data];
    let (mut machine, mut ask) = StillPoint::begin(BOUNDS, &crew);
    let mut now = Duration::ZERO;
    while ask.step != Step::Mark {
        now += ask.pause;
        for who in 0..3 {
            if let Next::Ask(next) = machine.answer(now, who, ask.number, well(who, ask)) {
                ask = next;
                break;
            }
        }
    }
    assert_eq!(machine.answer(now, 0, ask.number, Reply::Done), Next::Wait);
    assert_eq!(machine.answer(now, 1, ask.number, Reply::Done), Next::Wait);
    assert_eq!(machine.look(now, false), Next::Wait, "it is not due yet");
    let Next::Ask(release) = machine.look(machine.due(), false) else { panic!("released") };
    assert_eq!(release.step, Step::Release);
    assert!(machine.is_late(2) && !machine.is_late(0) && !machine.is_late(1));
    // Its mark comes after all, and changes nothing.
    assert_eq!(machine.answer(machine.due(), 2, ask.number, Reply::Done), Next::Wait);
    assert_eq!(machine.answer(machine.due(), 0, release.number, Reply::Done), Next::Wait);
    let Next::Over(ending) = machine.answer(machine.due(), 1, release.number, Reply::Done) else {
        panic!("over")
    };
    assert_eq!(ending.failure, Some(Failure::Late { who: 2, step: Step::Mark }));
}

#[test]
fn no_step_but_letting_go_has_time_beyond_the_longest_hold() {
    let (mut machine, ask) = StillPoint::begin(BOUNDS, &[Rank::Gateway, Rank::Data]);
    let late = Duration::from_secs(29);
    machine.answer(late, 0, ask.number, Reply::Done);
    let Next::Ask(drain) = machine.answer(late, 1, ask.number, Reply::Done) else { panic!() };
    assert_eq!(drain.step, Step::Drain);
    assert_eq!(machine.due(), BOUNDS.max_hold + GRACE);
    machine.look(machine.due(), false);
    assert_eq!(machine.step(), Step::Release);
}

#[test]
fn a_cancel_lets_go_at_once_and_comes_too_late_once_that_has_begun() {
    let crew = [Rank::Gateway, Rank::Data];
    let (mut machine, _) = StillPoint::begin(BOUNDS, &crew);
    let Next::Ask(ask) = machine.look(Duration::ZERO, true) else { panic!() };
    assert_eq!(ask.step, Step::Release);
    assert_eq!(machine.look(Duration::ZERO, true), Next::Wait);
    assert_eq!(machine.answer(Duration::ZERO, 0, ask.number, Reply::Done), Next::Wait);
    let Next::Over(ending) = machine.answer(Duration::ZERO, 1, ask.number, Reply::Done) else {
        panic!()
    };
    assert_eq!(ending.failure, Some(Failure::Cancelled));
}
