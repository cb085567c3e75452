//! `stillpoint gateway`: the gateway in a process of its own.
//!
//! It takes no keys and no passwords, and outlives whoever asks it for a hold. It ends on SIGTERM
//! or SIGINT, and with `--exit-with-stdin` when its standard input ends, which the kernel sees to
//! even when the process at the other end is killed. However it is told to end, it finishes the
//! requests in flight first. It does not start while a restore is half swapped in.

use crate::arguments::{GatewayRunArgs, Global};
use crate::ending::ending;
use crate::failure::Failure;
use crate::privileges;
use std::error::Error;
use std::io::{self, Write};
use stillpoint_agent::place::Place;
use stillpoint_capture::restore::{Journal, Phase};
use stillpoint_gateway::{Gateway, GatewayOptions};

/// Runs a gateway of the configuration until it is told to end.
pub(crate) fn run(global: &Global, arguments: &GatewayRunArgs) -> Result<(), Failure> {
    let place = Place::find(&global.place(), None)?;
    let gateways = &place.environment().gateways;
    let Some((name, part)) = gateways.iter().find(|(name, _)| name.as_str() == arguments.name)
    else {
        let names: Vec<&str> =
            gateways.keys().map(stillpoint_model::ids::PartName::as_str).collect();
        return Err(Failure::usage(format!(
            "environment `{}` has no gateway `{}`",
            place.name, arguments.name
        ))
        .hint(format!("it has: {}", names.join(", "))));
    };
    let fail = || Failure::new(format!("run gateway `{name}`"));
    refuse_half_swapped(&place)?;
    let options = GatewayOptions {
        name: name.clone(),
        listen: part.listen,
        upstream: part.upstream.parse().map_err(|e| fail().because(&e))?,
        max_hold: part.max_hold,
        max_held: part.max_held,
        control: place.gateway_socket(name)?,
        pass: part.pass.clone(),
        endpoint: part.endpoint.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| fail().because(&e))?;
    let result =
        runtime.block_on(serve(options, arguments.user.as_deref(), arguments.exit_with_stdin));
    // What is still open after the time of grace is closed without waiting.
    runtime.shutdown_background();
    result.map_err(|e| fail().because(e.as_ref()))
}

/// A gateway that was refusing requests for a restore may have died with it. The one that takes its
/// place knows nothing of that, and must not let anybody into data that is half swapped.
fn refuse_half_swapped(place: &Place) -> Result<(), Failure> {
    match Journal::read(&place.journal()?)? {
        Some(Journal { phase: Phase::Swapping | Phase::Swapped, backup, .. }) => {
            Err(Failure::new(format!("a restore of {backup} was cut off while it was swapped in"))
                .hint(
                    "`stillpoint recover` finishes it or undoes it; `stillpoint watchdog` does so",
                ))
        }
        Some(Journal { phase: Phase::Loading, .. }) | None => Ok(()),
    }
}

async fn serve(
    options: GatewayOptions,
    user: Option<&str>,
    exit_with_stdin: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    // Before the first line on stdout: whoever reads it may send a signal at once.
    let ending = ending(exit_with_stdin)?;
    let gateway = Gateway::bind(options).await?;
    if let Some(user) = user {
        privileges::drop_to(user)?;
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "ready http://{}", gateway.address())?;
    stdout.flush()?;
    gateway.serve(ending).await?;
    Ok(())
}
