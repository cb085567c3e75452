//! `stillpoint up`: server, agent, gateways and watchdog as processes of their own, supervised.
//!
//! Each is started again when it dies, for as long as `up` runs. All of them end by themselves once
//! `up` is gone, however it went: their standard input ends. None is ever killed by us but at the
//! very end of an ordered shutdown: whoever dies is missed, and the others act in its stead.

mod child;

use crate::arguments::{Global, UpArgs};
use crate::ending::ending;
use crate::failure::Failure;
use crate::output::{put, tell};
use crate::privileges;
use crate::processes::serve_options;
use child::{Child, Environment, Spec};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use stillpoint_agent::place::{self, data_dir, read_config};

/// How long everything may take to be ready for the first time.
const START: Duration = Duration::from_secs(60);
/// How long a child gets to end by itself; the agent may have a restore to finish.
const END: Duration = Duration::from_secs(120);

/// Runs everything until it is told to end.
pub(crate) fn run(global: &Global, arguments: &UpArgs) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::new("run everything").because(&e);
    let at = global.place();
    // All that is wrong with the configuration is said once, here.
    let (config, config_file) = read_config(&at)?;
    let data = data_dir(&at)?;
    let options = serve_options(&arguments.server);
    if options.tls.is_none() && !options.listen.ip().is_loopback() && !options.insecure_http {
        return Err(Failure::usage(format!(
            "{} is not a loopback address, and there is no TLS",
            options.listen
        ))
        .hint(
            "give --tls-cert and --tls-key; or --insecure-http, which lets everybody on the way \
             read the tokens",
        ));
    }
    let lock_file = place::private(&data, "run")?.join("up.lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_file)
        .map_err(fail)?;
    lock.try_lock().map_err(|_| {
        Failure::new(format!(
            "`stillpoint up` runs already with the data directory {}",
            data.display()
        ))
        .hint("end that one, or choose another directory with --data-dir")
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
    let guard = runtime.enter();
    // From here on a signal ends things in their order.
    let ending = ending(arguments.server.exit_with_stdin).map_err(fail)?;
    drop(guard);

    let mut common = vec!["--config".into(), config_file.into_os_string()];
    common.extend(["--data-dir".into(), data.clone().into_os_string()]);
    let spec = |name: &str, command: &[&str], environment| Spec {
        name: name.to_owned(),
        arguments: command
            .iter()
            .map(Into::into)
            .chain(common.iter().cloned())
            .chain(["--exit-with-stdin".into()])
            .collect(),
        environment,
    };
    let mut server = spec("server", &["server"], Environment::Bare);
    server.arguments.extend(arguments.server.to_arguments());
    let mut gateways = Vec::new();
    let user = match &arguments.gateway_user {
        Some(user) => Some(user.clone()),
        None if rustix::process::geteuid().is_root() => Some(privileges::default_user()?),
        None => None,
    };
    for (environment, parts) in &config.environments {
        for gateway in parts.gateways.keys() {
            let mut one = spec(
                &format!("gateway {environment}/{gateway}"),
                &["gateway", gateway.as_str(), "--environment", environment.as_str()],
                Environment::Bare,
            );
            if let Some(user) = &user {
                one.arguments.extend(["--user".into(), user.into()]);
            }
            gateways.push(one);
        }
    }
    let watchdog = spec("watchdog", &["watchdog"], Environment::Whole);
    let agent = spec("agent", &["agent"], Environment::Whole);

    // The watchdog is there before anything can be held, and goes last.
    let watchdog = Child::start(watchdog).map_err(fail)?;
    let gateways: Vec<Child> =
        gateways.into_iter().map(Child::start).collect::<Result<_, _>>().map_err(fail)?;
    let server = Child::start(server).map_err(fail)?;
    let agent = Child::start(agent).map_err(fail)?;
    let outcome = runtime.block_on(async {
        let mut ending = std::pin::pin!(ending);
        let until = Instant::now() + START;
        let all = || gateways.iter().chain([&watchdog, &server, &agent]);
        loop {
            let missing: Vec<&str> =
                all().filter(|child| child.ready().is_none()).map(Child::name).collect();
            if missing.is_empty() {
                break;
            }
            if Instant::now() > until {
                return Err(Failure::new(format!("not ready in time: {}", missing.join(", "))));
            }
            let pause = Duration::from_millis(20);
            if tokio::time::timeout(pause, &mut ending).await.is_ok() {
                return Ok(());
            }
        }
        for gateway in &gateways {
            tell(&format!("{} at {}", gateway.name(), gateway.ready().unwrap_or_default()));
        }
        put(&format!("ready {}", server.ready().unwrap_or_default()))?;
        ending.await;
        Ok(())
    });
    // In this order: no new work, then nobody to ask for any, then the traffic, then the watchdog,
    // which stays for as long as something is to be undone.
    agent.end(END);
    server.end(END);
    for gateway in &gateways {
        gateway.close();
    }
    for gateway in &gateways {
        gateway.end(END);
    }
    watchdog.end(END);
    outcome
}
