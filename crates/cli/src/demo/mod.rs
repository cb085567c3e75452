//! `stillpoint demo`: a real environment under load, backed up, destroyed, restored, compared.
//!
//! Everything that takes part is a process of its own, as it would be: the shop, its customers,
//! the gateway, the watchdog, the backup, the restore. This module is the stage manager: it builds
//! the environment, waits, and at the end believes only the customers' own log.

mod clean;
pub(crate) mod compare;
pub(crate) mod ledger;
pub(crate) mod load;
mod report;
pub(crate) mod shop;
mod stage;

use crate::arguments::Global;
use crate::failure::{self, Failure};
use crate::output::put;
use crate::terminal::Terminal;
pub(crate) use clean::{CleanArgs, run as run_clean};
use report::Report;
use stage::Stage;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use stillpoint_runtimes::ScratchPostgres;

/// Orders that the shop has before its first customer comes.
const SEEDED: u64 = 200;

/// Of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    stillpoint demo\n  \
    stillpoint demo --seconds 30 --keep /tmp/shop\n  \
    stillpoint demo --json --services sqlite,postgresql\n\n\
    Exit status: 0 all held, 1 something did not, 3 a service that was asked for is missing.")]
pub(crate) struct DemoArgs {
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
    /// How long customers order
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// `all`, or a list [default: sqlite, and postgresql where it is installed]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    services: Vec<String>,
    /// Keep everything in this directory, which must be empty or missing
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
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

/// The variable that carries the shop's database password between the demo's processes.
const PASSWORD_VARIABLE: &str = "STILLPOINT_DEMO_PASSWORD";

/// Serves the shop until told to end.
pub(crate) fn run_shop(arguments: ShopArgs) -> Result<(), Failure> {
    let password = std::env::var(PASSWORD_VARIABLE).ok();
    let options = shop::ShopOptions {
        listen: arguments.listen,
        sqlite: arguments.sqlite,
        postgres: arguments.postgres.map(|url| shop::PostgresTarget { url, password }),
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

/// The services that take part, and those that were asked for in vain.
struct Cast {
    sqlite: bool,
    postgresql: Option<stillpoint_runtimes::Installation>,
    /// Service and why it does not take part.
    missing: Vec<(String, String)>,
    /// The same, but nobody asked for it.
    absent: Vec<(String, String)>,
}

impl Cast {
    fn choose(asked: &[String]) -> Result<Self, Failure> {
        const ALL: [&str; 4] = ["sqlite", "postgresql", "mariadb", "redis"];
        let asked_all = asked.iter().any(|name| name == "all");
        if let Some(unknown) = asked.iter().find(|n| *n != "all" && !ALL.contains(&n.as_str())) {
            return Err(Failure::usage(format!("no service `{unknown}`"))
                .hint(format!("--services all, or of: {}", ALL.join(", "))));
        }
        let asks = |name: &str| asked_all || asked.iter().any(|asked| asked == name);
        let mut cast = Self {
            sqlite: asked.is_empty() || asks("sqlite"),
            postgresql: None,
            missing: Vec::new(),
            absent: Vec::new(),
        };
        if asked.is_empty() || asks("postgresql") {
            cast.postgresql = ScratchPostgres::find();
            if cast.postgresql.is_none() {
                let why = "no server is installed: apt-get install postgresql";
                let list = if asked.is_empty() { &mut cast.absent } else { &mut cast.missing };
                list.push(("postgresql".to_owned(), why.to_owned()));
            }
        }
        for name in ["mariadb", "redis"] {
            if asks(name) {
                let why = "this version has no driver for it yet";
                cast.missing.push((name.to_owned(), why.to_owned()));
            }
        }
        if !cast.sqlite && cast.postgresql.is_none() {
            // Something has to take part for there to be anything to show.
            cast.sqlite = true;
        }
        Ok(cast)
    }
}

/// Runs the demo.
pub(crate) fn run(global: &Global, arguments: &DemoArgs) -> ExitCode {
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    let cast = match Cast::choose(&arguments.services) {
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
    let mut stage = Stage::build(arguments.keep.as_deref(), cast, terminal)?;
    report.stage(&stage);
    stage.open(terminal)?;

    terminal.say(&format!(
        "{} customers order for {} s; the backup begins after a third of it",
        arguments.connections, arguments.seconds
    ));
    let load = stage.start_load(arguments.connections, duration)?;
    load.wait_for(duration / 3, terminal)?;
    terminal.say("taking a backup");
    let backup = stage.back_up(terminal);
    // However long that took: customers are still there when it ends.
    load.wait_for(duration, terminal)?;
    // Whatever became of the backup, what the customers saw counts.
    let summary = load.end(terminal)?;
    report.load(&summary);
    let backup = backup?;
    report.backup(&backup)?;

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
