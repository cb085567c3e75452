//! Many held rounds, for `cargo xtask soak still-point`.

use crate::stage::{self, PASSWORD, Round, Stage};
use std::process::Command;
use stillpoint_testkit::workload::Traffic;

/// How many rounds; set by the task.
const ROUNDS: &str = "STILLPOINT_SOAK_ROUNDS";

#[test]
#[ignore = "long: `cargo xtask soak still-point` runs it"]
fn every_round_is_of_one_instant() {
    let rounds: u32 = std::env::var(ROUNDS)
        .map_or(Ok(100), |rounds| rounds.parse())
        .unwrap_or_else(|error| panic!("{ROUNDS}: {error}"));
    let _alone = stage::alone();
    let stage = Stage::open(Traffic::FULL);
    let (mut violated, mut holds) = (0, Vec::new());
    for number in 1..=rounds {
        let round = stage.held_round();
        println!("round {number}: {round}");
        violated += u32::from(!round.violations.is_empty());
        holds.push(hold_ms(&round));
    }
    let check = Command::new("restic")
        .args(["--no-cache", "check", "--read-data", "--repo"])
        .arg(stage.repository())
        .env("RESTIC_PASSWORD", PASSWORD)
        .output()
        .expect("restic runs");
    let (summary, jobs) = stage.close();
    holds.sort_by(f64::total_cmp);
    println!("\n{rounds} rounds, {violated} with violations");
    println!(
        "requests: {}, of these {} by WebSocket, {} failed, slowest {:.1} ms; {jobs} jobs of the \
         worker",
        summary.requests, summary.messages, summary.failed, summary.slowest_ms
    );
    if let (Some(median), Some(worst)) = (holds.get(holds.len() / 2), holds.last()) {
        println!("hold_ms: median {median:.1}, worst {worst:.1}");
    }
    println!("restic check --read-data: {}", check.status);
    assert_eq!(violated, 0, "rounds show violations");
    assert_eq!(summary.failed, 0, "{:?}", summary.failures);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

fn hold_ms(round: &Round) -> f64 {
    round.manifest.evidence.as_ref().expect("a held backup has evidence").hold_ms()
}
