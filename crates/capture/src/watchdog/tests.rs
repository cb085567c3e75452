//! The holder is a child process that only sleeps; the test speaks for it on the wire, so that it
//! can fall silent, die and hang up at will. Events are awaited, never timed.

use super::protocol::{FromHolder, PROTOCOL};
use super::*;
use crate::worker::Commands;
use crate::worker::Target;
use crate::worker::tests::{Writing, frozen, shell};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

struct Scene {
    directory: tempfile::TempDir,
    watchdog: JoinHandle<std::io::Result<()>>,
}

impl Scene {
    fn new() -> Self {
        Self::with("/usr/bin/touch", |watchdog, _| watchdog)
    }

    /// With another program, and a watchdog that was made otherwise.
    fn with(program: &str, made: impl FnOnce(Watchdog, &Path) -> Watchdog) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = WatchdogOptions {
            socket: directory.path().join("w.sock"),
            program: PathBuf::from(program),
            until_idle: true,
        };
        let watchdog = made(Watchdog::bind(options).unwrap(), directory.path());
        Self { directory, watchdog: std::thread::spawn(|| watchdog.serve()) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("w.sock")
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::File::create(&path).unwrap();
        path
    }

    /// Waits until the watchdog has done all that it had to do.
    fn end(self) -> tempfile::TempDir {
        self.watchdog.join().unwrap().unwrap();
        self.directory
    }
}

struct Holder {
    child: Child,
    wire: BufReader<UnixStream>,
}

impl Holder {
    fn connect(socket: &Path, silence: Duration) -> Self {
        let child = sleeper();
        let wire = BufReader::new(UnixStream::connect(socket).unwrap());
        let mut holder = Self { child, wire };
        let silence_ms = silence.as_millis() as u64;
        let pid = holder.child.id().cast_signed();
        let answer = holder.say(&FromHolder::Hello { protocol: PROTOCOL, pid, silence_ms });
        assert!(answer.contains("ok"), "{answer}");
        holder
    }

    fn say(&mut self, word: &FromHolder) -> String {
        let mut line = serde_json::to_string(word).unwrap();
        line.push('\n');
        self.wire.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.wire.read_line(&mut answer).unwrap();
        answer
    }

    fn register(&mut self, undo: Vec<Undo>, within: Option<Duration>) {
        let within_ms = within.map(|w| w.as_millis() as u64);
        assert!(self.say(&FromHolder::Register { undo, within_ms }).contains("ok"));
    }

    /// Waits until somebody has killed it, and says with which signal.
    fn killed_by(&mut self) -> Option<i32> {
        self.child.wait().unwrap().signal()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_dead_holders_lock_files_are_removed() {
    let scene = Scene::new();
    let lock = scene.file("lock");
    let missing = scene.directory.path().join("never-was");
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![Undo::RemoveFiles { paths: vec![missing, lock.clone()] }], None);
    holder.kill();
    let _directory = scene.end();
    assert!(!lock.exists());
}

#[test]
fn a_holder_that_says_goodbye_leaves_everything_as_it_is() {
    let scene = Scene::new();
    let lock = scene.file("lock");
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![Undo::RemoveFiles { paths: vec![lock.clone()] }], None);
    assert!(holder.say(&FromHolder::Goodbye).contains("ok"));
    let _directory = scene.end();
    assert!(lock.exists());
    holder.kill();
}

#[test]
fn a_silent_holder_that_keeps_others_waiting_is_ended_and_then_cleaned_up_after() {
    let scene = Scene::new();
    let lock = scene.file("lock");
    let mut holder = Holder::connect(&scene.socket(), Duration::from_millis(50));
    let undo = vec![
        Undo::EndHolder { when: When::Silent },
        Undo::RemoveFiles { paths: vec![lock.clone()] },
    ];
    holder.register(undo, None);
    assert_eq!(holder.killed_by(), Some(9));
    let _directory = scene.end();
    assert!(!lock.exists());
}

#[test]
fn a_silent_holder_keeps_its_lock_for_as_long_as_it_lives() {
    let scene = Scene::new();
    let lock = scene.file("lock");
    let mut silent = Holder::connect(&scene.socket(), Duration::from_millis(20));
    silent.register(vec![Undo::RemoveFiles { paths: vec![lock.clone()] }], None);
    // Another silent one, ended by the watchdog after the first had been found silent.
    let mut other = Holder::connect(&scene.socket(), Duration::from_millis(200));
    other.register(vec![Undo::EndHolder { when: When::Silent }], None);
    assert_eq!(other.killed_by(), Some(9));
    assert!(lock.exists());
    // It wakes up, and is heard again.
    assert!(silent.say(&FromHolder::Goodbye).contains("ok"));
    let _directory = scene.end();
    assert!(lock.exists());
    silent.kill();
}

#[test]
fn time_that_runs_out_counts_as_silence_even_of_one_who_beats() {
    let scene = Scene::new();
    let mut holder = Holder::connect(&scene.socket(), LONG);
    let undo = vec![Undo::EndHolder { when: When::Silent }];
    holder.register(undo, Some(Duration::from_millis(30)));
    assert_eq!(holder.killed_by(), Some(9));
    scene.end();
}

#[test]
fn a_dead_holders_processes_are_ended_but_not_others_with_their_number() {
    let scene = Scene::new();
    let (mut server, mut stranger) = (sleeper(), sleeper());
    let pid = |child: &Child| child.id().cast_signed();
    let by = EndSignal::Terminate;
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(
        vec![
            // As if the number had been given to another process meanwhile.
            Undo::EndProcess { by, pid: pid(&stranger), started: 1 },
            Undo::EndProcess { by, pid: pid(&server), started: started(pid(&server)).unwrap() },
        ],
        None,
    );
    holder.kill();
    assert_eq!(server.wait().unwrap().signal(), Some(15));
    scene.end();
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_dead_holders_recovery_is_run() {
    let scene = Scene::new();
    let sign = scene.directory.path().join("recovered");
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![Undo::Run { arguments: vec![sign.display().to_string()] }], None);
    holder.kill();
    let _directory = scene.end();
    assert!(sign.exists());
}

#[test]
fn a_second_watchdog_does_not_take_a_living_ones_socket() {
    let scene = Scene::new();
    let options =
        WatchdogOptions { socket: scene.socket(), program: "/bin/true".into(), until_idle: true };
    assert!(Watchdog::bind(options).is_err());
    let guard = Guard::connect(&scene.socket(), LONG).unwrap();
    guard.goodbye().unwrap();
    scene.end();
}

#[test]
fn a_dead_watchdogs_socket_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("w.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(matches!(Guard::connect(&socket, LONG), Err(WatchdogError::Unreachable { .. })));
    let options = WatchdogOptions { socket, program: "/bin/true".into(), until_idle: true };
    Watchdog::bind(options).unwrap();
}

#[test]
fn another_protocol_is_refused() {
    let scene = Scene::new();
    let mut wire = BufReader::new(UnixStream::connect(scene.socket()).unwrap());
    wire.get_mut()
        .write_all(b"{\"say\":\"hello\",\"protocol\":99,\"pid\":1,\"silence_ms\":1}\n")
        .unwrap();
    let mut answer = String::new();
    wire.read_line(&mut answer).unwrap();
    assert!(answer.contains("refused") && answer.contains("99"), "{answer}");
    Guard::connect(&scene.socket(), LONG).unwrap().goodbye().unwrap();
    scene.end();
}

#[test]
fn a_recovery_is_tried_until_it_succeeds() {
    let pauses = vec![Duration::from_millis(1); 20];
    let scene = Scene::with("/bin/sh", |watchdog, _| watchdog.retrying(pauses));
    let tries = scene.directory.path().join("tries");
    let done = scene.directory.path().join("done");
    let (counted, ended) = (tries.display(), done.display());
    // The third try succeeds.
    let script =
        format!("echo x >> {counted}; [ $(wc -l < {counted}) -ge 3 ] && echo x >> {ended}");
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![Undo::Run { arguments: vec!["-c".into(), script] }], None);
    holder.kill();
    let _directory = scene.end();
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "x\nx\nx\n");
    assert_eq!(std::fs::read_to_string(done).unwrap(), "x\n");
}

#[test]
fn a_recovery_that_never_succeeds_is_given_up_and_what_follows_is_done() {
    let pauses = vec![Duration::from_millis(1); 4];
    let scene = Scene::with("/bin/sh", |watchdog, _| watchdog.retrying(pauses));
    let lock = scene.file("lock");
    let tries = scene.directory.path().join("tries");
    let script = format!("echo x >> {}; exit 1", tries.display());
    let mut holder = Holder::connect(&scene.socket(), LONG);
    let run = Undo::Run { arguments: vec!["-c".into(), script] };
    holder.register(vec![run, Undo::RemoveFiles { paths: vec![lock.clone()] }], None);
    holder.kill();
    let _directory = scene.end();
    assert_eq!(std::fs::read_to_string(tries).unwrap().lines().count(), 5);
    assert!(!lock.exists());
}

#[test]
fn what_an_earlier_watchdog_left_is_recovered_first_and_ends_no_new_one() {
    let mut sign = PathBuf::new();
    let scene = Scene::with("/usr/bin/touch", |watchdog, directory| {
        sign = directory.join("recovered");
        watchdog.recovering(vec![vec![sign.display().to_string()]])
    });
    while !sign.exists() {
        std::thread::yield_now();
    }
    Guard::connect(&scene.socket(), LONG).unwrap().goodbye().unwrap();
    scene.end();
}

#[test]
fn one_who_only_looks_in_is_no_holder() {
    let scene = Scene::new();
    // Each makes the watchdog look round, and has gone when the next one comes.
    for _ in 0..10 {
        let mut looking = UnixStream::connect(scene.socket()).unwrap();
        looking.write_all(b"\n").unwrap();
        assert_eq!(std::io::Read::read(&mut looking, &mut [0; 8]).unwrap(), 0);
    }
    let lock = scene.file("lock");
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![Undo::RemoveFiles { paths: vec![lock.clone()] }], None);
    holder.kill();
    let _directory = scene.end();
    assert!(!lock.exists());
}

#[test]
fn a_frozen_worker_goes_on_when_its_holder_dies_or_falls_silent_or_holds_too_long() {
    let cases = [(LONG, None), (Duration::from_millis(50), None), (LONG, Some(Duration::ZERO))];
    for (case, (silence, within)) in cases.into_iter().enumerate() {
        let scene = Scene::new();
        let writing = Writing::new();
        let frozen = Box::new(frozen(writing.target()));
        let mut holder = Holder::connect(&scene.socket(), silence);
        writing.freeze();
        holder.register(vec![Undo::Thaw { when: When::Silent, frozen }], within);
        if case == 0 {
            holder.kill();
        }
        writing.goes_on();
        if case > 0 {
            holder.kill();
        }
        scene.end();
    }
}

#[test]
fn a_worker_on_half_swapped_data_stands_still_until_its_holder_is_dead_and_all_is_recovered() {
    let writing = Writing::new();
    let scene = Scene::with("/bin/sh", |watchdog, _| watchdog);
    let recovered = scene.directory.path().join("recovered");
    let mut holder = Holder::connect(&scene.socket(), Duration::from_millis(50));
    writing.freeze();
    // The recovery looks whether the worker writes while it goes on.
    let own = writing.directory.path().join("own");
    let script = format!(
        "a=$(stat -c %s {own}); sleep 0.1; b=$(stat -c %s {own}); echo $((b - a)) > {}",
        recovered.display(),
        own = own.display()
    );
    let undo = vec![
        Undo::Run { arguments: vec!["-c".to_owned(), script] },
        Undo::Thaw { when: When::Dead, frozen: Box::new(frozen(writing.target())) },
        // Acted on when it falls silent, which is how that is noticed here.
        Undo::EndHolder { when: When::Silent },
    ];
    holder.register(undo, None);
    assert_eq!(holder.killed_by(), Some(9));
    let _directory = scene.end();
    assert_eq!(std::fs::read_to_string(recovered).unwrap(), "0\n");
    writing.goes_on();
}

#[test]
fn a_thaw_that_fails_is_tried_until_it_succeeds() {
    let scene = Scene::new();
    let at = scene.directory.path().to_owned();
    let thaw = "echo tried >> tries; test $(wc -l < tries) -ge 3";
    let commands = Commands { freeze: shell("true", &at), thaw: shell(thaw, &at) };
    let undo =
        Undo::Thaw { when: When::Dead, frozen: Box::new(frozen(Target::Commands(commands))) };
    let mut holder = Holder::connect(&scene.socket(), LONG);
    holder.register(vec![undo], None);
    holder.kill();
    let _directory = scene.end();
    assert_eq!(std::fs::read_to_string(at.join("tries")).unwrap(), "tried\n".repeat(3));
}
