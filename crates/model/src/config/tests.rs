//! What the configuration accepts, and the exact words of every refusal.

use super::read::LATER_SERVICE_TYPES;
use super::*;

/// The design's example, as far as this version goes.
const GOOD: &str = r#"project: shop
environments:
  main:
    type: production
    code: { path: . }
    gateways:
      web: { listen: "0.0.0.0:8000", upstream: "http://127.0.0.1:8080", drain_timeout: 5s }
    services:
      db: { type: postgresql, url: "postgres://shop@127.0.0.1:5432/shop", password_env: SHOP_DB_PASSWORD }
      local: { type: sqlite, path: ./data/app.db }
    mounts:
      uploads: { path: ./uploads, exclude: ["*.tmp"] }
regions:
  home:
    locations:
      a: { url: "file:///srv/backup-a" }
      b: { url: "file:///srv/backup%20b" }
    write_quorum: 2
"#;

/// The good file with one piece of it exchanged.
fn with(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} is once in the sample");
    GOOD.replace(from, to)
}

fn name(text: &str) -> PartName {
    text.parse().unwrap()
}

/// All that is wrong, as it is displayed.
fn refusals(text: &str) -> String {
    parse("stillpoint.yaml", text).unwrap_err().to_string()
}

/// Asserts that exactly this is wrong.
#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(refusals(text), expected);
}

fn main_of(config: &Config) -> &Environment {
    &config.environments[&"main".parse::<EnvironmentName>().unwrap()]
}

#[test]
fn a_good_file_is_read_whole() {
    let config = parse("stillpoint.yaml", GOOD).unwrap();
    assert_eq!(config.project.as_str(), "shop");
    let main = main_of(&config);
    assert_eq!(main.kind, EnvironmentKind::Production);
    assert_eq!(main.code, Some(Code { path: ".".into() }));
    assert_eq!(main.on_partial, OnPartial::Partial);
    assert_eq!(
        main.gateways[&name("web")],
        GatewayPart {
            listen: "0.0.0.0:8000".parse().unwrap(),
            upstream: "http://127.0.0.1:8080".to_owned(),
            drain_timeout: Duration::from_secs(5),
            max_hold: Duration::from_secs(30),
            max_held: 10_000,
            pass: Vec::new(),
            endpoint: None,
        }
    );
    assert_eq!(
        main.services[&name("db")],
        ServicePart::Postgresql {
            url: "postgres://shop@127.0.0.1:5432/shop".to_owned(),
            password_env: Some("SHOP_DB_PASSWORD".to_owned()),
            databases: Vec::new(),
        }
    );
    assert_eq!(main.services[&name("local")], ServicePart::Sqlite { path: "./data/app.db".into() });
    assert_eq!(
        main.mounts[&name("uploads")],
        MountPart { path: "./uploads".into(), exclude: vec!["*.tmp".to_owned()] }
    );
    let home = &config.regions[&"home".parse::<RegionName>().unwrap()];
    assert_eq!(home.write_quorum, 2);
    let paths: Vec<_> = home.locations.values().collect();
    assert_eq!(
        paths,
        [
            &Location::Directory { path: "/srv/backup-a".into() },
            &Location::Directory { path: "/srv/backup b".into() },
        ]
    );
}

#[test]
fn the_smallest_file_is_enough() {
    let text = "project: shop\nenvironments:\n  main:\n    type: development\n    mounts:\n      \
                files: { path: files }\n";
    let config = parse("stillpoint.yaml", text).unwrap();
    assert!(config.regions.is_empty());
    assert!(main_of(&config).gateways.is_empty());
}

#[test]
fn the_write_quorum_is_two_unless_there_is_one_location() {
    let two = parse("f", &with("    write_quorum: 2\n", "")).unwrap();
    assert_eq!(two.regions.values().next().unwrap().write_quorum, 2);
    let text = with("      b: { url: \"file:///srv/backup%20b\" }\n    write_quorum: 2\n", "");
    let one = parse("f", &text).unwrap();
    assert_eq!(one.regions.values().next().unwrap().write_quorum, 1);
}

#[test]
fn relative_paths_are_meant_from_the_directory_of_the_file() {
    let mut config = parse("f", &with("path: ./uploads", "path: /var/uploads")).unwrap();
    config.resolve_against(Path::new("/srv/shop"));
    let main = main_of(&config);
    assert_eq!(main.code, Some(Code { path: "/srv/shop".into() }));
    assert_eq!(main.mounts[&name("uploads")].path, Path::new("/var/uploads"));
    assert_eq!(
        main.services[&name("local")],
        ServicePart::Sqlite { path: "/srv/shop/data/app.db".into() }
    );
}

#[test]
fn durations_are_read_with_their_units() {
    for (given, milliseconds) in
        [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("1m30s", 90_000)]
    {
        let text = with("drain_timeout: 5s", &format!("max_hold: 2h, drain_timeout: {given}"));
        let config = parse("f", &text).unwrap();
        let gateway = &main_of(&config).gateways[&name("web")];
        assert_eq!(gateway.drain_timeout, Duration::from_millis(milliseconds), "{given}");
    }
}

#[test]
fn a_gateways_exceptions_and_endpoint_are_read() {
    let text = with(
        "drain_timeout: 5s",
        "pass: [\"/healthz\", \"/metrics*\"], endpoint: { listen: \"127.0.0.1:8001\", \
         completions: { syslog: \"unixgram:/run/stillpoint/log.sock\" } }",
    );
    let config = parse("f", &text).unwrap();
    let web = &main_of(&config).gateways[&name("web")];
    assert_eq!(web.pass, ["/healthz".parse().unwrap(), "/metrics*".parse().unwrap()]);
    let endpoint = web.endpoint.as_ref().unwrap();
    assert_eq!(endpoint.listen, "127.0.0.1:8001".parse().unwrap());
    let completions = endpoint.completions.as_ref().unwrap();
    assert_eq!(completions.syslog, SyslogAddress::Unix("/run/stillpoint/log.sock".into()));
    assert_eq!(completions.within, Duration::from_secs(5));
    let text =
        text.replace("unixgram:/run/stillpoint/log.sock\"", "udp:127.0.0.1:8514\", within: 2s");
    let config = parse("f", &text).unwrap();
    let endpoint = main_of(&config).gateways[&name("web")].endpoint.clone().unwrap();
    let completions = endpoint.completions.unwrap();
    assert_eq!(completions.syslog, SyslogAddress::Udp("127.0.0.1:8514".parse().unwrap()));
    assert_eq!(completions.within, Duration::from_secs(2));
}

#[test]
fn an_exception_that_is_everything_is_refused_at_its_place() {
    refused(
        &with("drain_timeout: 5s", "pass: [\"/healthz\", \"/*\"]"),
        "stillpoint.yaml:7:92: key `environments.main.gateways.web.pass[1]`: `/*` is not a path \
         that may pass: it is every path, and a gateway that holds nothing proves nothing; write \
         \"/healthz\", or \"/metrics*\"",
    );
}

#[test]
fn an_endpoint_that_cannot_be_is_refused_at_its_place() {
    let line = |endpoint: &str| with("drain_timeout: 5s", &format!("endpoint: {endpoint}"));
    let completions = |what: &str| line(&format!("{{ listen: \"[::1]:1\", completions: {what} }}"));
    for (text, says) in [
        (line("{}"), "endpoint.listen`: this key is missing"),
        (line("{ listen: \"web:80\" }"), "endpoint.listen`: `web:80` is not an IP address"),
        (completions("{}"), "completions.syslog`: this key is missing"),
        (completions("{ syslog: \"/dev/log\" }"), "this is not an address for syslog"),
        (completions("{ syslog: \"unixgram:log.sock\" }"), "a socket's path is absolute"),
        (completions("{ syslog: \"udp:514\" }"), "`514` is not an IP address with a port"),
        (
            completions("{ syslog: \"udp:[::1]:514\", within: 10s }"),
            "completions.within`: the end of a request is waited for 10s, but the drain takes no \
             longer than 10s; `within` must be less than `drain_timeout`",
        ),
    ] {
        let said = refusals(&text);
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn a_partial_backup_can_be_made_a_failure() {
    let config = parse("f", &with("    mounts:", "    on_partial: fail\n    mounts:")).unwrap();
    assert_eq!(main_of(&config).on_partial, OnPartial::Fail);
}

#[test]
fn a_backup_can_be_limited() {
    assert_eq!(
        main_of(&parse("f", &with("    mounts:", "    mounts:")).unwrap()).limits,
        Limits { rate: None, step: None }
    );
    for (given, bytes) in [("50MB/s", 50_000_000), ("1 GiB/s", 1 << 30), ("9B/s", 9)] {
        let limits = format!("    limits: {{ rate: {given}, step: 20s }}\n    mounts:");
        let config = parse("f", &with("    mounts:", &limits)).unwrap();
        let step = Some(Duration::from_secs(20));
        assert_eq!(main_of(&config).limits, Limits { rate: NonZeroU64::new(bytes), step });
    }
}

#[test]
fn the_example_of_the_readme_is_read() {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    parse("README.md", example).unwrap();
}

#[test]
fn the_examples_of_the_gateways_documents_are_read() {
    let documents = concat!(
        include_str!("../../../../docs/gateway.md"),
        include_str!("../../../../docs/gateway-proxies.md")
    );
    let examples: Vec<&str> = documents
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0)
        .filter(|example| example.starts_with("gateways:"))
        .collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        let indented = example.replace('\n', "\n    ");
        let text = format!(
            "project: shop\nenvironments:\n  main:\n    type: production\n    mounts: {{ a: \
             {{ path: a }} }}\n    {indented}\n"
        );
        parse("example", &text).unwrap_or_else(|errors| panic!("{errors} in {text}"));
    }
}

// Refusals.

#[test]
fn an_unknown_key_names_the_one_that_was_meant() {
    refused(
        &with("upstream: \"http", "upstrem: \"http"),
        "stillpoint.yaml:7:38: key `environments.main.gateways.web.upstrem`: unknown key; did you \
         mean `upstream`? Known keys here: listen, upstream, drain_timeout, max_hold, max_held, \
         pass, endpoint",
    );
    refused(
        &with("regions:", "colour: red\nregions:"),
        "stillpoint.yaml:13:1: key `colour`: unknown key; Known keys here: project, environments, \
         regions",
    );
    refused(
        &with("path: ./uploads", "path: ./uploads, Exclude: []"),
        "stillpoint.yaml:12:35: key `environments.main.mounts.uploads.Exclude`: unknown key; did \
         you mean `exclude`? Known keys here: path, exclude",
    );
}

#[test]
fn every_error_is_reported_in_the_order_of_the_lines() {
    let text = with("project: shop", "project: My Shop")
        .replace("drain_timeout: 5s", "drain_timeout: 5")
        .replace("file:///srv/backup-a", "/srv/backup-a");
    refused(
        &text,
        "stillpoint.yaml:1:10: key `project`: project id `My Shop` is not valid: lower-case \
         letters and digits only, 1 to 64 of them; write `myshop`\n\
         stillpoint.yaml:7:88: key `environments.main.gateways.web.drain_timeout`: a duration \
         needs a unit; write 5s for seconds, 5ms for milliseconds\n\
         stillpoint.yaml:16:17: key `regions.home.locations.a.url`: this is not the URL of a \
         location; write \"file:///PATH\"",
    );
}

#[test]
fn a_missing_key_is_named_with_what_to_write() {
    refused(
        "environments:\n  main: { type: staging, mounts: { a: {} } }\n",
        "stillpoint.yaml:1:1: key `project`: this key is missing; write `project: NAME`, \
         lower-case letters and digits\n\
         stillpoint.yaml:2:36: key `environments.main.mounts.a.path`: this key is missing; write \
         `path:` with the directory",
    );
    refused(
        &with("type: sqlite, ", ""),
        "stillpoint.yaml:10:7: key `environments.main.services.local.type`: this key is missing; \
         write `type:` with one of: postgresql, mariadb, mysql, redis, valkey, sqlite",
    );
    refused(
        "project: shop\nenvironments: {}\n",
        "stillpoint.yaml:2:1: key `environments`: there is nothing in it",
    );
    refused(
        "project: shop\nenvironments:\n  main: { type: staging }\n",
        "stillpoint.yaml:3:3: key `environments.main`: there is nothing to back up; add \
         `services`, `mounts`, or both",
    );
}

#[test]
fn a_key_that_is_given_twice_is_refused() {
    refused(
        &with("    type: production\n", "    type: production\n    type: staging\n"),
        "stillpoint.yaml:5:5: key `environments.main.type`: this key is given twice; the first is \
         in line 4: remove one",
    );
}

#[test]
fn a_value_of_another_type_is_refused() {
    refused(
        &with("project: shop", "project: 5"),
        "stillpoint.yaml:1:10: key `project`: expected text, found the number 5; put it in quotes",
    );
    refused(
        &with("code: { path: . }", "code: ."),
        "stillpoint.yaml:5:5: key `environments.main.code`: expected a table of keys, found `.`",
    );
    refused(
        &with("code: { path: . }", "code:"),
        "stillpoint.yaml:5:5: key `environments.main.code`: expected a table of keys, found \
         nothing",
    );
    refused(
        &with("[\"*.tmp\"]", "\"*.tmp\""),
        "stillpoint.yaml:12:44: key `environments.main.mounts.uploads.exclude`: expected a list \
         of texts, found `*.tmp`; write [\"*.tmp\"]",
    );
    refused(
        &with("[\"*.tmp\"]", "[\"*.tmp\", true]"),
        "stillpoint.yaml:12:54: key `environments.main.mounts.uploads.exclude[1]`: expected text, \
         found `true`, which YAML reads as a truth value; put it in quotes",
    );
    refused("- a\n", "stillpoint.yaml:1:1: expected a table of keys, found a list");
}

#[test]
fn a_word_that_is_none_of_the_known_ones_is_refused_with_the_list() {
    refused(
        &with("type: production", "type: prodction"),
        "stillpoint.yaml:4:11: key `environments.main.type`: `prodction` is not a value that this \
         key can have; did you mean `production`? It is one of: production, staging, development",
    );
    refused(
        &with("type: sqlite", "type: oracle"),
        "stillpoint.yaml:10:22: key `environments.main.services.local.type`: `oracle` is not a \
         value that this key can have; it is one of: postgresql, mariadb, mysql, redis, valkey, sqlite",
    );
    refused(
        &with("    mounts:", "    on_partial: ignore\n    mounts:"),
        "stillpoint.yaml:11:17: key `environments.main.on_partial`: `ignore` is not a value that \
         this key can have; it is one of: partial, fail",
    );
}

#[test]
fn a_rate_is_bytes_in_a_second() {
    for given in ["fast", "50", "50MB", "MB/s", "5 mb/s", "99999999999 GB/s"] {
        refused(
            &with("    mounts:", &format!("    limits: {{ rate: \"{given}\" }}\n    mounts:")),
            &format!(
                "stillpoint.yaml:11:21: key `environments.main.limits.rate`: `{given}` is not a \
                 rate; write 50MB/s or 500kB/s; MiB and KiB are known as well"
            ),
        );
    }
    refused(
        &with("    mounts:", "    limits: { rate: 0MB/s }\n    mounts:"),
        "stillpoint.yaml:11:21: key `environments.main.limits.rate`: must be more than 0; leave \
         `rate` out for no limit",
    );
}

#[test]
fn every_kind_of_database_server_is_read() {
    let services = "      shop: { type: mysql, url: \"mysql://shop@db/shop\", databases: [a, b] }\n\
                    \x20     other: { type: mariadb, url: \"mysql://a@/b?socket=/run/mysqld.sock\", \
                    password_env: P }\n\
                    \x20     cache: { type: redis, url: \"redis://127.0.0.1:6379\", password_env: P }\n\
                    \x20     more: { type: valkey, url: \"redis+unix:///run/valkey.sock\" }\n    mounts:";
    let config = parse("stillpoint.yaml", &with("    mounts:", services)).unwrap();
    let services = &main_of(&config).services;
    let kinds: Vec<&str> = services.values().map(ServicePart::kind).collect();
    assert_eq!(kinds, ["redis", "postgresql", "sqlite", "valkey", "mariadb", "mysql"]);
    let ServicePart::Mariadb { databases, .. } = &services[&name("shop")] else { panic!() };
    assert_eq!(databases, &["a", "b"]);
}

#[test]
fn a_redis_server_is_named_without_a_password_or_a_database() {
    let line = |url: &str| {
        with("    mounts:", &format!("      cache: {{ type: redis, url: \"{url}\" }}\n    mounts:"))
    };
    for (url, problem) in [
        ("redis://:secret@cache", "a password does not belong in this file"),
        ("redis://cache/3", "the whole server is backed up: the URL names no database"),
        ("rediss://cache", "TLS to Redis is not supported by this version yet"),
        ("redis+unix://relative", "a socket's path is absolute"),
        ("redis://cache:0", "the URL lacks a host, or its port is 0"),
        ("http://cache", "this is not a Redis URL"),
    ] {
        let said = refusals(&line(url));
        assert!(said.contains(&format!("services.cache.url`: {problem}")), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn a_mariadb_server_is_named_like_a_postgresql_one() {
    for (url, problem) in [
        ("mysql://shop:s3cret@db/shop", "a password does not belong in this file"),
        ("postgres://shop@db/shop", "this is not a MariaDB or MySQL URL"),
        ("mysql://shop@db", "neither the URL nor `databases` names a database"),
    ] {
        let line = format!("      my: {{ type: mariadb, url: \"{url}\" }}\n    mounts:");
        let said = refusals(&with("    mounts:", &line));
        assert!(said.contains(problem) && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn what_a_later_version_will_do_is_refused_and_never_ignored() {
    for later in LATER_SERVICE_TYPES {
        refused(
            &with("type: sqlite", &format!("type: {later}")),
            &format!(
                "stillpoint.yaml:10:22: key `environments.main.services.local.type`: a service of \
                 type `{later}` is not supported by this version yet; this version has: \
                 postgresql, mariadb, mysql, redis, valkey, sqlite"
            ),
        );
    }
    for later in ["workers", "crons"] {
        refused(
            &with("    mounts:", &format!("    {later}: {{}}\n    mounts:")),
            &format!(
                "stillpoint.yaml:11:5: key `environments.main.{later}`: `{later}` is not supported \
                 by this version yet; remove it if backups may do without it"
            ),
        );
    }
    refused(
        &with("type: sqlite", "host: app2, type: sqlite"),
        "stillpoint.yaml:10:16: key `environments.main.services.local.host`: `host` is not \
         supported by this version yet; remove it if backups may do without it",
    );
    refused(
        &with(
            "\"file:///srv/backup-a\"",
            "\"s3://bucket/prefix\", endpoint: \"https://s3.example.org\", access_key_env: A, \
             secret_key_env: B",
        ),
        "stillpoint.yaml:16:17: key `regions.home.locations.a.url`: a location at `s3://` is not \
         supported by this version yet; write \"file:///PATH\": a directory, which may be a \
         mounted file system",
    );
    refused(
        &with("  home:\n", "  away:\n    locations: { a: { url: \"file:///b\" } }\n  home:\n"),
        "stillpoint.yaml:13:1: key `regions`: more than one region is not supported by this \
         version yet; keep one",
    );
}

#[test]
fn names_that_could_leave_their_directory_are_refused_at_their_line() {
    refused(
        &with("      uploads:", "      ../uploads:"),
        "stillpoint.yaml:12:7: key `environments.main.mounts.../uploads`: name `../uploads` is \
         not valid: letters, digits, `_` and `-` only, 1 to 64 of them, beginning with a letter or \
         digit",
    );
}

#[test]
fn a_password_is_refused_and_never_repeated() {
    for url in [
        "postgres://shop:s3cret@db/shop",
        "postgres://shop@db/shop?password=s3cret",
        "postgres://a:b/s3cret@h/d",
    ] {
        refused(
            &with("postgres://shop@127.0.0.1:5432/shop", url),
            "stillpoint.yaml:9:36: key `environments.main.services.db.url`: a password does not \
             belong in this file; take it out of the URL, put it into an environment variable, \
             and name that with `password_env`",
        );
    }
    let text = with("password_env: SHOP_DB_PASSWORD", "password_env: \"s3cret!\"");
    refused(
        &text,
        "stillpoint.yaml:9:89: key `environments.main.services.db.password_env`: this is not the \
         name of an environment variable; write the variable's name, like SHOP_DB_PASSWORD, not \
         its value, and no `$`",
    );
}

#[test]
fn a_bad_postgresql_url_is_refused_with_the_reason() {
    let form = "write \"postgres://USER@HOST:PORT/DATABASE\"";
    for (url, problem) in [
        ("mysql://shop@db/shop", "this is not a PostgreSQL URL"),
        ("postgres://db/shop", "the URL names no user"),
        ("postgres://shop@/shop", "the URL names no host"),
        ("postgres://shop@a,b/shop", "the URL names several hosts; a backup is of one server"),
        ("postgres://shop@db:port/shop", "the URL's port is not a number from 1 to 65535"),
        ("postgres://shop@db:65536/shop", "the URL's port is not a number from 1 to 65535"),
        ("postgres://shop@db/a/b", "the URL's path is more than a database's name"),
        ("postgres://shop@db", "neither the URL nor `databases` names a database"),
    ] {
        refused(
            &with("postgres://shop@127.0.0.1:5432/shop", url),
            &format!(
                "stillpoint.yaml:9:36: key `environments.main.services.db.url`: {problem}; {form}"
            ),
        );
    }
    for url in ["postgres://shop@[::1]:5432/shop", "postgresql://shop@/shop?host=/run/postgresql"] {
        parse("f", &with("postgres://shop@127.0.0.1:5432/shop", url)).unwrap();
    }
    let listed = with("5432/shop\"", "5432\", databases: [shop, stock]");
    parse("f", &listed).unwrap();
    let twice = with("5432/shop\"", "5432\", databases: [shop, shop]");
    assert!(refusals(&twice).ends_with("databases[1]`: `shop` is given twice"));
}

#[test]
fn a_bad_gateway_is_refused_with_what_would_be_right() {
    let gateway = "key `environments.main.gateways.web";
    for (from, to, problem) in [
        (
            "0.0.0.0:8000",
            "localhost:8000",
            format!(
                "7:22: {gateway}.listen`: `localhost:8000` is not an IP address with a port; \
                 write \"127.0.0.1:8000\" for this host only, \"0.0.0.0:8000\" for every network"
            ),
        ),
        (
            "http://127.0.0.1:8080",
            "https://127.0.0.1:8080",
            format!(
                "7:48: {gateway}.upstream`: https to the application is not supported by this \
                 version yet; write \"http://HOST:PORT\""
            ),
        ),
        (
            "http://127.0.0.1:8080",
            "127.0.0.1:8080",
            format!(
                "7:48: {gateway}.upstream`: this is not the URL of a web application; write \
                 \"http://HOST:PORT\""
            ),
        ),
        (
            "http://127.0.0.1:8080",
            "http://127.0.0.1:8080/app",
            format!(
                "7:48: {gateway}.upstream`: an upstream has no path: requests keep their own; \
                 write \"http://HOST:PORT\""
            ),
        ),
        (
            "drain_timeout: 5s",
            "drain_timeout: soon",
            format!(
                "7:88: {gateway}.drain_timeout`: `soon` is not a duration; write 10s, 500ms, 2m or \
                 1h"
            ),
        ),
        (
            "drain_timeout: 5s",
            "drain_timeout: 0s",
            format!(
                "7:88: {gateway}.drain_timeout`: must be more than 0; write 10s, 500ms, 2m or 1h"
            ),
        ),
        (
            "drain_timeout: 5s",
            "drain_timeout: 99999999999999999999h",
            format!(
                "7:88: {gateway}.drain_timeout`: `99999999999999999999h` is not a duration; write \
                 10s, 500ms, 2m or 1h"
            ),
        ),
        (
            "drain_timeout: 5s",
            "max_hold: 10s",
            format!(
                "7:83: {gateway}.max_hold`: draining may take 10s, but no request waits longer \
                 than 10s; `drain_timeout` must be less than `max_hold`, to leave time for the \
                 marks"
            ),
        ),
        (
            "drain_timeout: 5s",
            "max_held: 0",
            format!(
                "7:83: {gateway}.max_held`: expected a whole number from 1 on, found the number 0"
            ),
        ),
    ] {
        refused(&with(from, to), &format!("stillpoint.yaml:{problem}"));
    }
}

#[test]
fn parts_that_would_capture_the_same_files_are_refused() {
    refused(
        &with("      uploads:", "      local:"),
        "stillpoint.yaml:12:7: key `environments.main.mounts.local`: a service is named `local` \
         too; names are unique among services and mounts: rename one",
    );
    refused(
        &with("regions:", "      thumbs: { path: uploads/thumbs }\nregions:"),
        "stillpoint.yaml:13:23: key `environments.main.mounts.thumbs.path`: this directory is in \
         the mount `uploads` already; what is in two mounts would be captured twice and restored \
         twice",
    );
    refused(
        &with("path: ./uploads,", "path: ./data,"),
        "stillpoint.yaml:10:36: key `environments.main.services.local.path`: this database is in \
         the mount `uploads`, which would copy it while it changes; add `exclude: [\"app.db*\"]` \
         to the mount",
    );
    let excluded = with("path: ./uploads, exclude: [", "path: ./data, exclude: [\"app.db*\", ");
    parse("f", &excluded).unwrap();
    let in_directory = with("path: ./data/app.db", "path: ./data/db/app.db")
        .replace("path: ./uploads, exclude: [", "path: ./data, exclude: [\"/db/\", ");
    parse("f", &in_directory).unwrap();
    // The write-ahead log belongs to the database.
    let half = with("path: ./uploads, exclude: [", "path: ./data, exclude: [\"app.db\", ");
    assert!(refusals(&half).contains("this database is in the mount"));
}

#[test]
fn a_pattern_that_cannot_be_understood_is_refused() {
    refused(
        &with("[\"*.tmp\"]", "[\"*.tmp\", \"a[\"]"),
        "stillpoint.yaml:12:54: key `environments.main.mounts.uploads.exclude[1]`: `a[` is not a \
         pattern: unclosed character class; missing ']'; write a name (\"*.tmp\") or a path from \
         the mount's top (\"cache/**\")",
    );
}

#[test]
fn a_quorum_above_the_number_of_locations_is_refused() {
    refused(
        &with("write_quorum: 2", "write_quorum: 3"),
        "stillpoint.yaml:18:19: key `regions.home.write_quorum`: 3 copies are asked for, of 2 \
         locations; lower it, or add locations",
    );
}

#[test]
fn what_is_not_yaml_is_refused_at_its_line() {
    refused(
        &with("    type: production", "\ttype: production"),
        "stillpoint.yaml:4:2: this line is indented with a tab; indent with spaces: YAML does not \
         allow tabs here",
    );
    refused(
        &with("{ path: . }", "{ path: . "),
        "stillpoint.yaml:6:13: this is not valid YAML: while parsing a flow mapping, did not find \
         expected ',' or '}'",
    );
    refused(
        &with("    code: { path: . }", "    <<: { a: b }"),
        "stillpoint.yaml:5:5: the merge key `<<` is not allowed; write the keys out, or repeat a \
         whole value by an anchor",
    );
    refused(
        &format!("{GOOD}---\nproject: other\n"),
        "stillpoint.yaml:20:1: a second YAML document begins here; the file is one document: \
         remove the `---` or what follows",
    );
    refused(
        &with("    code: { path: . }", "   code: { path: . }"),
        "stillpoint.yaml:5:4: this is not valid YAML: while parsing a block mapping, did not find \
         expected key; look at the indentation, and for a missing quote, here and in the line \
         before",
    );
    for (key, column) in [("null", 1), ("? [a]\n", 3)] {
        refused(
            &format!("{key}: x\n"),
            &format!("stillpoint.yaml:1:{column}: this cannot be a key; write a plain word"),
        );
    }
    assert!(refusals(&with("project: shop", "project: !include /etc/passwd")).contains("tag"));
    for empty in ["", "# nothing yet\n", "---\n"] {
        refused(
            empty,
            "stillpoint.yaml:1:1: the file is empty; it needs the keys `project` and \
             `environments`",
        );
    }
}

#[test]
fn an_error_is_one_line_whatever_the_file_says() {
    refused(
        &with("project: shop", "project: \"a\\n\\eb\""),
        "stillpoint.yaml:1:10: key `project`: project id `a\\n\\u{1b}b` is not valid: lower-case \
         letters and digits only, 1 to 64 of them; write `ab`",
    );
}

#[test]
fn no_piece_of_the_file_makes_the_reader_panic() {
    for end in 0..GOOD.len() {
        // Whether it is still a whole configuration is not the point.
        drop(parse("f", &GOOD[..end]));
        drop(parse("f", &GOOD[end..]));
    }
    for (index, _) in GOOD.lines().enumerate() {
        let without: Vec<&str> =
            GOOD.lines().enumerate().filter(|(at, _)| *at != index).map(|(_, line)| line).collect();
        drop(parse("f", &without.join("\n")));
    }
}

#[test]
fn a_deeply_nested_file_is_refused_rather_than_ending_the_process() {
    let text = format!("project: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    assert!(refusals(&text).starts_with("stillpoint.yaml:1:"));
    let bomb = "project: shop\na: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n\
                c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n\
                e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\n\
                g: &g [*f, *f, *f, *f, *f, *f, *f, *f]\nh: [*g, *g, *g, *g, *g, *g, *g, *g]\n";
    assert!(refusals(bomb).contains("not valid YAML"), "{}", refusals(bomb));
}
