//! The scratch server as others see it: through its socket, its files and its processes.

use std::path::Path;

use postgres::config::Config;
use postgres::{Client, NoTls};
use stillpoint_runtimes::{OnSpawn, RuntimeError, ScratchOptions, ScratchPostgres};

fn start(dir: &Path, options: &ScratchOptions) -> ScratchPostgres {
    let installation = ScratchPostgres::find().expect("PostgreSQL's server is installed");
    ScratchPostgres::start(&installation, dir, options).expect("the scratch server starts")
}

fn connect(server: &ScratchPostgres) -> Client {
    let mut config: Config = server.url().parse().unwrap();
    config.password(server.password()).connect(NoTls).unwrap()
}

#[test]
fn the_applications_role_is_no_superuser_and_may_create_databases() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &ScratchOptions::default());
    let row = connect(&server)
        .query_one(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, current_setting('fsync'), \
             pg_get_userbyid(datdba)::text FROM pg_roles, pg_database \
             WHERE rolname = current_user AND datname = current_database()",
            &[],
        )
        .unwrap();
    assert!(!row.get::<_, bool>(0));
    assert!(row.get::<_, bool>(1));
    assert!(!row.get::<_, bool>(2));
    assert_eq!(row.get::<_, String>(3), "on");
    assert_eq!(row.get::<_, String>(4), "shop");
    server.stop().unwrap();
}

#[test]
fn every_login_needs_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let options = ScratchOptions { tcp: true, ..ScratchOptions::default() };
    let server = start(dir.path(), &options);
    for user in ["shop", "postgres"] {
        for host in ["127.0.0.1", server.socket_dir().to_str().unwrap()] {
            let mut config = Config::new();
            config.host(host).port(server.port()).user(user).dbname("shop").password("wrong");
            assert!(config.connect(NoTls).is_err(), "{user} at {host}");
        }
    }
    assert!(server.url().contains("127.0.0.1"));
    connect(&server).batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_dropped_server_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &ScratchOptions::default());
    let url = server.url();
    let pid = server.pid();
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(Client::connect(&url, NoTls).is_err());
    assert!(!dir.path().join("data/postmaster.pid").exists());
}

#[test]
fn a_path_too_long_for_a_socket_still_works() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long".repeat(25));
    // The way to the server's directory must be open to the account that it runs as.
    open(dir.path());
    let server = start(&long, &ScratchOptions::default());
    connect(&server).batch_execute("SELECT 1").unwrap();
    let socket_dir = server.socket_dir().to_owned();
    drop(server);
    assert!(!socket_dir.exists());
}

#[test]
fn a_directory_with_a_servers_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let installation = ScratchPostgres::find().unwrap();
    let refused =
        ScratchPostgres::start(&installation, dir.path(), &ScratchOptions::default()).unwrap_err();
    assert!(matches!(refused, RuntimeError::InUse { .. }), "{refused}");
}

#[test]
fn a_server_that_does_not_start_shows_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = ScratchOptions {
        settings: vec![("no_such_setting_at_all".to_owned(), "1".to_owned())],
        ..ScratchOptions::default()
    };
    let installation = ScratchPostgres::find().unwrap();
    let refused = ScratchPostgres::start(&installation, dir.path(), &options).unwrap_err();
    assert!(refused.to_string().contains("no_such_setting_at_all"), "{refused}");
}

fn open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn whoever_minds_knows_the_servers_process_before_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let pid_file = dir.path().join("data/postmaster.pid");
    let on_spawn = OnSpawn::new(move |pid| {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let ready = text.lines().nth(7).is_some_and(|line| line.trim() == "ready");
        tell.send((pid, ready)).map_err(std::io::Error::other)
    });
    let options = ScratchOptions { on_spawn: Some(on_spawn), ..ScratchOptions::default() };
    let server = start(dir.path(), &options);
    assert_eq!(told.recv().unwrap(), (server.pid(), false));
}

#[test]
fn a_server_that_nobody_could_be_told_of_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let on_spawn = OnSpawn::new(move |pid| {
        tell.send(pid).map_err(std::io::Error::other)?;
        Err(std::io::Error::other("nobody hears"))
    });
    let options = ScratchOptions { on_spawn: Some(on_spawn), ..ScratchOptions::default() };
    let installation = ScratchPostgres::find().unwrap();
    let error = ScratchPostgres::start(&installation, dir.path(), &options).unwrap_err();
    assert!(error.to_string().contains("tell of the server"), "{error}");
    assert!(!Path::new(&format!("/proc/{}", told.recv().unwrap())).exists());
}

#[test]
fn every_other_server_starts_is_locked_and_ends_with_its_value() {
    use stillpoint_runtimes::{MariadbOptions, RedisOptions, ScratchMariadb, ScratchRedis};
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let installed = ScratchMariadb::find().expect("MariaDB's server is installed");
    let mariadb =
        ScratchMariadb::start(&installed, &dir.path().join("my"), &MariadbOptions::default());
    let mariadb = mariadb.unwrap();
    let ask = |user: &str, password: &str| {
        std::process::Command::new(mariadb.client())
            .args(["--no-defaults", "-u", user, &format!("--password={password}"), "-S"])
            .arg(mariadb.socket())
            .args(["-e", "SELECT 1"])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(ask("shop", mariadb.password()) && ask("root", mariadb.root_password()));
    assert!(!ask("shop", "wrong") && !ask("root", ""));
    let installed = ScratchRedis::find().expect("Redis's server is installed");
    let redis = ScratchRedis::start(&installed, &dir.path().join("re"), &RedisOptions::default());
    let redis = redis.unwrap();
    let ask = |user: &str, password: &str| {
        let output = std::process::Command::new(redis.client())
            .args(["--no-auth-warning", "-s"])
            .arg(redis.socket())
            .args(["--user", user, "--pass", password, "PING"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim() == "PONG"
    };
    assert!(ask("shop", redis.password()) && ask("default", redis.admin_password()));
    assert!(!ask("shop", "wrong") && !ask("default", ""));
    let pids = [mariadb.pid(), redis.pid()];
    mariadb.stop().unwrap();
    drop(redis);
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
