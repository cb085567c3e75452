//! `stillpoint server`, `agent` and `task`: the processes that `up` supervises, and what they run.

use crate::arguments::{AgentArgs, Global, ServerArgs};
use crate::ending::ending;
use crate::failure::Failure;
use crate::output::put;
use std::error::Error;
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use stillpoint_agent::place::data_dir;
use stillpoint_agent::{AgentOptions, Stop, server_socket, task};
use stillpoint_control::Control;
use stillpoint_server::{Bound, ServeError, ServeOptions, TlsFiles};
use tokio::net::UnixListener;

/// Runs the server until it is told to end.
pub(crate) fn server(global: &Global, arguments: &ServerArgs) -> Result<(), Failure> {
    let fail = || Failure::new("run the server");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| fail().because(&e))?;
    let result = runtime.block_on(serve(global, arguments));
    runtime.shutdown_background();
    result
}

async fn serve(global: &Global, arguments: &ServerArgs) -> Result<(), Failure> {
    let fail = |e: &(dyn Error + 'static)| Failure::new("run the server").because(e);
    let ending = ending(arguments.exit_with_stdin).map_err(|e| fail(&e))?;
    let place = global.place();
    let data = data_dir(&place)?;
    let bound = Bound::new(&serve_options(arguments)).await.map_err(|e| {
        let insecure = matches!(e, ServeError::Insecure(_));
        let failure = Failure::usage("serve the API").because(&e);
        if insecure {
            failure.hint(
                "give --tls-cert and --tls-key; or --insecure-http, which lets everybody \
                 on the way read the tokens",
            )
        } else {
            failure
        }
    })?;
    let control = Control::open(&data.join("server")).await.map_err(|e| fail(&e))?;
    if let Some(token) = control.bootstrap().await.map_err(|e| fail(&e))? {
        let path = data.join("admin.token");
        write_private(&path, &token.secret)
            .map_err(|e| Failure::new(format!("write {}", path.display())).because(&e))?;
    }
    let socket = server_socket(&place)?;
    match fs::remove_file(&socket) {
        // The datastore's lock is ours, so nobody listens there any more.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(&e)),
        _ => {}
    }
    let agents = UnixListener::bind(&socket).map_err(|e| fail(&e))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(|e| fail(&e))?;
    let serving = control.clone();
    tokio::spawn(async move { serving.serve_agents(agents).await });
    let url = bound.url().map_err(|e| fail(&e))?;
    let path = data.join("server.url");
    write_private(&path, &url)
        .map_err(|e| Failure::new(format!("write {}", path.display())).because(&e))?;
    put(&format!("ready {url}"))?;
    bound.serve(control, ending).await;
    Ok(())
}

/// How the API is served, as the flags say.
pub(crate) fn serve_options(arguments: &ServerArgs) -> ServeOptions {
    let tls = arguments.tls_cert.clone().zip(arguments.tls_key.clone());
    ServeOptions {
        listen: arguments.listen,
        tls: tls.map(|(certificate, key)| TlsFiles { certificate, key }),
        insecure_http: arguments.insecure_http,
    }
}

/// A file that only its owner reads, durably, whole or not at all.
fn write_private(path: &Path, line: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

/// Runs the agent until it is told to end.
pub(crate) fn agent(global: &Global, arguments: &AgentArgs) -> Result<(), Failure> {
    let fail = |e: &(dyn Error + 'static)| Failure::new("run the agent").because(e);
    let program = std::env::current_exe().map_err(|e| fail(&e))?;
    let mut place = global.place();
    place.config = std::path::absolute(&place.config).map_err(|e| fail(&e))?;
    let name = arguments.name.clone();
    let options = AgentOptions { place, name: name.clone(), program };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| fail(&e))?;
    let guard = runtime.enter();
    let ending = ending(arguments.exit_with_stdin).map_err(|e| fail(&e))?;
    drop(guard);
    let stop = Stop::default();
    let serving = stop.clone();
    let agent = std::thread::spawn(move || {
        let ready = || put(&format!("ready agent {name}"));
        stillpoint_agent::serve(&options, &serving, ready)
    });
    // An agent that could not even begin ends this process too.
    runtime.block_on(async {
        let mut ending = std::pin::pin!(ending);
        let look_again = std::time::Duration::from_millis(100);
        while !agent.is_finished() {
            if tokio::time::timeout(look_again, &mut ending).await.is_ok() {
                break;
            }
        }
    });
    stop.stop();
    agent.join().map_err(|_| Failure::new("the agent panicked; this is a bug"))?
}

/// Runs one order of the agent's.
pub(crate) fn task(global: &Global) -> Result<(), Failure> {
    task::run(&global.place(), BufReader::new(io::stdin()), io::stdout())
}
