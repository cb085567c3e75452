//! `stillpoint gateway`: the gateway in a process of its own.
//!
//! It takes no keys and no passwords, and outlives whoever asks it for a hold. It ends on SIGTERM
//! or SIGINT, and with `--exit-with-stdin` when its standard input ends, which the kernel sees to
//! even when the process at the other end is killed. However it is told to end, it finishes the
//! requests in flight first.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use stillpoint_gateway::{Gateway, GatewayOptions, Upstream};
use stillpoint_model::ids::PartName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Hold, and otherwise pass on, the requests to an application.
#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    /// Its name in the environment
    #[arg(long, value_name = "NAME", default_value = "web")]
    pub name: PartName,

    /// Where it accepts requests; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,

    /// Where the application is
    #[arg(long, value_name = "http://HOST:PORT")]
    pub upstream: Upstream,

    /// No hold lasts longer than this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub max_hold: Duration,

    /// Answer 503 when more requests than this wait
    #[arg(long, value_name = "NUMBER", default_value = "10000", value_parser = at_least_one)]
    pub max_held: usize,

    /// The Unix socket on which coordinators ask for holds; made with mode 0600
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,

    /// End when standard input ends, as it does when the process that started this one is gone
    #[arg(long)]
    pub exit_with_stdin: bool,
}

/// Runs the gateway of the arguments until it is told to end.
pub fn run(args: GatewayArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let options = GatewayOptions {
        name: args.name,
        listen: args.listen,
        upstream: args.upstream,
        max_hold: args.max_hold,
        max_held: args.max_held,
        control: args.control,
    };
    run_with(options, args.exit_with_stdin)
}

/// Runs a gateway until it is told to end, wherever its options came from.
pub fn run_with(
    options: GatewayOptions,
    exit_with_stdin: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options, exit_with_stdin));
    // What is still open after the time of grace is closed without waiting.
    runtime.shutdown_background();
    result
}

async fn serve(
    options: GatewayOptions,
    exit_with_stdin: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // Before the first line on stdout: whoever reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdin_ended = watch_stdin(exit_with_stdin)?;
    let gateway = Gateway::bind(options).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "ready http://{}", gateway.address())?;
    stdout.flush()?;
    gateway
        .serve(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = stdin_ended => {}
            }
        })
        .await?;
    Ok(())
}

/// Ends when standard input does, or never. A thread of its own reads it: nothing else can wait
/// for the end of any kind of standard input.
fn watch_stdin(watch: bool) -> io::Result<impl Future<Output = ()>> {
    let (ended, end) = oneshot::channel();
    if watch {
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut bytes = [0_u8; 1024];
            loop {
                match stdin.read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(read) if read > 0 => {}
                    // An input that cannot be read any more has ended as well.
                    Ok(_) | Err(_) => break,
                }
            }
            // When nobody waits any more, the gateway is ending already.
            let _ = ended.send(());
        })?;
    }
    Ok(async move {
        if !watch || end.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let text = text.strip_suffix('s').unwrap_or(text);
    match text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(seconds) if !seconds.is_zero() && seconds <= Duration::from_secs(86_400) => {
            Ok(seconds)
        }
        _ => Err("a number of seconds is wanted, more than 0 and at most 86400".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a number of at least 1 is wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        gateway: GatewayArgs,
    }

    fn parse(more: &[&str]) -> Result<GatewayArgs, clap::Error> {
        let needed = [
            "gateway",
            "--listen=127.0.0.1:0",
            "--upstream=http://127.0.0.1:8080",
            "--control=/tmp/s",
        ];
        Command::try_parse_from(needed.iter().chain(more)).map(|command| command.gateway)
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.max_hold, Duration::from_secs(30));
        assert_eq!(args.max_held, 10_000);
        assert!(!args.exit_with_stdin);
    }

    #[test]
    fn times_and_numbers_that_make_no_sense_are_refused() {
        for bad in ["--max-hold=0", "--max-hold=-1", "--max-hold=NaN", "--max-hold=1e300"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        for bad in ["--max-held=0", "--max-held=many", "--upstream=https://a", "--name=a/b"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(parse(&["--max-hold=1.5s"]).unwrap().max_hold, Duration::from_millis(1500));
    }
}
