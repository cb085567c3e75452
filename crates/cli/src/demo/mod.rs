//! `stillpoint demo`: a real environment under load, backed up, destroyed, restored, compared.
//!
//! Everything that takes part is a process of its own, as it would be: the shop, its customers,
//! the gateway, the watchdog, the backup, the restore. This module is the stage manager: it builds
//! the environment, waits, and at the end believes only the customers' own log.

mod cast;
mod clean;
pub(crate) mod compare;
pub(crate) mod ledger;
pub(crate) mod load;
mod report;
mod servers;
pub(crate) mod shop;
mod stage;

use crate::arguments::Global;
use crate::failure::{self, Failure};
use crate::output::put;
use crate::terminal::Terminal;
use cast::{Cast, Installed};
pub(crate) use clean::{CleanArgs, run as run_clean};
use report::Report;
use stage::Stage;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    stillpoint demo\n  \
    stillpoint demo --seconds 30 --keep /tmp/shop\n  \
    stillpoint demo --json --services sqlite,postgresql\n  \
    stillpoint demo --pictures 100000 --backups 20\n\n\
    Exit status: 0 all held, 1 something did not, 3 a service that was asked for is missing.")]
pub(crate) struct DemoArgs {
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
    /// How long customers order
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// `all`, or a list [default: sqlite, and those of postgresql, mariadb and redis that
    /// are installed]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    services: Vec<String>,
    /// Keep everything in this directory, which must be empty or missing
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// How many backups are taken, with a pause of a third of SECONDS before each; the last is
    /// restored
    #[arg(long, default_value_t = 1, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    backups: u16,
    /// How many orders the shop has before its first customer comes, each in every service and a file
    #[arg(long, default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    orders: u64,
    /// How many pictures its catalogue has, each a file
    #[arg(long, default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pictures: u32,
    /// How many customers order at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    connections: u16,
}

/// Of `demo-shop`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShopArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    uploads: PathBuf,
    #[arg(long)]
    sqlite: Option<PathBuf>,
    #[arg(long)]
    postgres: Option<String>,
    #[arg(long)]
    mariadb: Option<String>,
    #[arg(long)]
    redis: Option<String>,
}

/// Of `demo-load`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    connections: u16,
    #[arg(long)]
    seconds: u64,
    #[arg(long)]
    log: PathBuf,
}

/// The variable that carries the password of the shop's database servers between the demo's
/// processes.
const PASSWORD_VARIABLE: &str = "STILLPOINT_DEMO_PASSWORD";

/// Serves the shop until told to end.
pub(crate) fn run_shop(arguments: ShopArgs) -> Result<(), Failure> {
    let password = std::env::var(PASSWORD_VARIABLE).ok();
    let target = |url| shop::Target { url, password: password.clone() };
    let options = shop::ShopOptions {
        listen: arguments.listen,
        sqlite: arguments.sqlite,
        postgres: arguments.postgres.map(target),
        mariadb: arguments.mariadb.map(target),
        redis: arguments.redis.map(target),
        uploads: arguments.uploads,
    };
    shop::run(&options, |address| {
        // Whoever started this has gone: standard input ends as well, and so does the shop.
        put(&format!("ready {address}")).unwrap_or(());
    })
    .map_err(|e| Failure::new("run the shop").because(e.as_ref()))
}

/// Orders until the time is over.
pub(crate) fn run_load(arguments: LoadArgs) -> Result<(), Failure> {
    let options = load::LoadOptions {
        target: arguments.target,
        connections: arguments.connections.into(),
        duration: Duration::from_secs(arguments.seconds),
        log: arguments.log,
        stop_on_stdin_eof: true,
    };
    load::run(&options).map(drop).map_err(|e| Failure::new("order").because(e.as_ref()))
}

/// Runs the demo.
pub(crate) fn run(global: &Global, arguments: &DemoArgs) -> ExitCode {
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    let cast = match Cast::choose(&arguments.services, Installed::find()) {
        Ok(cast) => cast,
        Err(failure) => return failure::report(&failure),
    };
    let mut report = Report::new(&cast);
    let outcome = play(arguments, &cast, &terminal, &mut report);
    terminal.clear();
    if let Err(failure) = &outcome {
        report.failed(failure);
    }
    let printed = if arguments.json {
        put(&report.json().to_string())
    } else if outcome.is_ok() {
        put(report.text().trim_end())
    } else {
        Ok(())
    };
    match outcome.and(printed) {
        Err(failure) => failure::report(&failure),
        Ok(()) if !report.held() => {
            failure::report(&Failure::new("the demo did not hold what it promises; see the report"))
        }
        Ok(()) if !cast.missing.is_empty() => {
            let missing: Vec<String> =
                cast.missing.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            failure::report(&Failure::partial(format!("without {}", missing.join("; "))))
        }
        Ok(()) => ExitCode::SUCCESS,
    }
}

fn play(
    arguments: &DemoArgs,
    cast: &Cast,
    terminal: &Terminal,
    report: &mut Report,
) -> Result<(), Failure> {
    let duration = Duration::from_secs(arguments.seconds);
    let past = shop::Past { orders: arguments.orders, pictures: arguments.pictures as usize };
    let mut stage = Stage::build(arguments.keep.as_deref(), cast, past, terminal)?;
    report.stage(&stage);
    stage.open(terminal)?;

    terminal.say(&format!(
        "{} customers order; each backup begins after {:.1} s",
        arguments.connections,
        (duration / 3).as_secs_f64()
    ));
    let load = stage.start_load(arguments.connections, duration)?;
    let taken = (0..arguments.backups).try_for_each(|_| {
        load.wait(Instant::now() + duration / 3, terminal)?;
        terminal.say("taking a backup");
        report.backup(stage.back_up(terminal)?)
    });
    // However long that took: customers are still there when it ends.
    load.wait(load.begun() + duration, terminal)?;
    // Whatever became of the backups, what the customers saw counts.
    let summary = load.end(terminal)?;
    report.load(&summary);
    taken?;

    let restored = stage.stores();
    let done = compare::destroy(&restored)
        .map_err(|e| Failure::new("destroy the data").because(e.as_ref()))?;
    for what in &done {
        terminal.say(&format!("destroyed: {what}"));
    }
    terminal.say("restoring");
    let took = stage.restore(report.backup_id(), terminal)?;
    report.restored(took);

    terminal.say("comparing with the customers' own log");
    let ledger = ledger::Ledger::read(&stage.load_log())
        .map_err(|e| Failure::new("read the customers' log").because(&e))?;
    let (hold_begin, drained) = report.instant()?;
    let comparison = compare::compare(&ledger, hold_begin, drained, &restored)
        .map_err(|e| Failure::new("compare").because(e.as_ref()))?;
    report.compared(&comparison);
    stage.order_once_more()?;
    stage.strike()
}
