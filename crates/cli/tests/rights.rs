//! What a viewer, a contributor, and somebody of another project get for each change there is:
//! no link, a refusal that is on record, and of what is not theirs to see, not a word.

#![allow(clippy::disallowed_methods, reason = "files of a test need not survive a crash")]

mod support;

use serde_json::Value;
use support::service::Service;

const ENVIRONMENT: &str = "/projects/test/environments/main";

/// A machine user with these roles: its id, and an access token.
fn user(service: &Service, name: &str, roles: &[&str]) -> (String, String) {
    let mut add = vec!["user:add", name, "--machine"];
    for role in roles {
        add.extend(["-r", role]);
    }
    let id = service.succeed(&add);
    let token = service.succeed(&["api-token:create", "t", "--user", name]);
    (id, service.log_in(&token))
}

/// The names of an object's links to operations.
fn operations(object: &Value) -> Vec<String> {
    let links = object["_links"].as_object().unwrap();
    links.keys().filter(|name| name.starts_with('#')).cloned().collect()
}

/// Every change of backups: back up, restore, delete, cancel.
fn changes(backup: &str, activity: &str) -> [(&'static str, String); 4] {
    [
        ("POST", format!("{ENVIRONMENT}/backup")),
        ("POST", format!("{ENVIRONMENT}/backups/{backup}/restore")),
        ("DELETE", format!("{ENVIRONMENT}/backups/{backup}")),
        ("POST", format!("/projects/test/activities/{activity}/cancel")),
    ]
}

/// The refusals on record of one user, as action and subject.
fn refusals(service: &Service, user: &str) -> Vec<(String, String)> {
    let path = service.environment.path("data/server/state.db");
    let database = rusqlite::Connection::open(path).unwrap();
    let mut found = database
        .prepare("SELECT action, subject FROM audit WHERE NOT allowed AND user = ?1 ORDER BY id")
        .unwrap();
    let rows = found.query_map([user], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Takes a user out of the project, in the datastore: removing a machine's user by a command ends
/// its tokens as well, and then it is nobody at all.
fn leave_the_project(service: &Service, user: &str) {
    let path = service.environment.path("data/server/state.db");
    let database = rusqlite::Connection::open(path).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(database.execute("DELETE FROM members WHERE user = ?1", [user]).unwrap(), 1);
}

/// A backup, and an activity that runs until it is let go.
fn scene() -> (Service, String, String, std::thread::JoinHandle<String>) {
    let service = Service::start();
    let backup = service.succeed(&["backup:create"]);
    let gateway = service.gateway;
    let hanging = std::thread::spawn(move || support::get(gateway, "/hang").unwrap());
    service.environment.application.await_hanging(1);
    service.succeed(&["backup:create", "--no-wait"]);
    let all = service.await_json(&["activity:list"], |all| all[0]["phase"] == "hold");
    let activity = all[0]["id"].as_str().unwrap().to_owned();
    (service, backup, activity, hanging)
}

#[test]
fn who_only_looks_on_finds_no_link_and_each_try_is_refused_and_on_record() {
    let (service, backup, activity, hanging) = scene();
    for role in ["production:viewer", "production:contributor"] {
        let (id, access) = user(&service, &format!("{role}@example.com"), &["viewer", role]);
        let get = |path: &str| {
            let (status, object) = service.send("GET", path, Some(&access), "");
            assert_eq!(status, 200, "{path}: {object}");
            object
        };
        let seen = get(ENVIRONMENT);
        let offered = operations(&seen);
        assert!(offered.iter().all(|name| !name.contains("backup")), "{role}: {offered:?}");
        assert_eq!(operations(&get(&format!("{ENVIRONMENT}/backups/{backup}"))), [""; 0]);
        assert_eq!(operations(&get(&format!("/projects/test/activities/{activity}"))), [""; 0]);
        for (method, path) in changes(&backup, &activity) {
            let (status, answer) = service.send(method, &path, Some(&access), "{}");
            assert_eq!(status, 403, "{role}: {method} {path}: {answer}");
        }
        let on_record = refusals(&service, &id);
        let actions: Vec<&str> = on_record.iter().map(|(action, _)| action.as_str()).collect();
        assert_eq!(
            actions,
            [
                "environment.backup",
                "environment.restore",
                "environment.backup.delete",
                "activity.cancel"
            ]
        );
        assert!(on_record.iter().all(|(_, subject)| subject.contains("test/main")));
    }
    // The administrator has each of the links, and the activity still runs.
    let access = service.log_in(&service.admin_token());
    let running =
        service.send("GET", &format!("/projects/test/activities/{activity}"), Some(&access), "").1;
    assert_eq!(
        (&running["state"], operations(&running).as_slice()),
        (&"in_progress".into(), &["#cancel".to_owned()][..])
    );
    let seen = service.send("GET", &format!("{ENVIRONMENT}/backups/{backup}"), Some(&access), "").1;
    assert_eq!(operations(&seen), ["#delete", "#restore"]);
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.await_json(&["activity:list"], |all| all[0]["result"] == "success");
    // Two backups were asked for, by who may: nothing else was begun.
    assert_eq!(service.json(&["activity:list"]).as_array().unwrap().len(), 2);
}

#[test]
fn of_another_project_nothing_is_found_and_nothing_told() {
    let (service, backup, activity, hanging) = scene();
    // One whose role is for other types; and one who is known to the server, but in no project.
    let (id, elsewhere) = user(&service, "elsewhere@example.com", &["viewer", "development:admin"]);
    let (stranger_id, stranger) =
        user(&service, "stranger@example.com", &["viewer", "production:admin"]);
    leave_the_project(&service, &stranger_id);
    let absent = "a".repeat(26);
    for access in [&elsewhere, &stranger] {
        for (there, not_there) in
            changes(&backup, &activity).into_iter().zip(changes(&absent, "aaaaaaaaaaaaa"))
        {
            let (method, path) = &there;
            let (status, answer) = service.send(method, path, Some(access), "{}");
            assert_eq!(status, 404, "{method} {path}: {answer}");
            let (_, of_nothing) = service.send(method, &not_there.1, Some(access), "{}");
            // What is there and what is not cannot be told apart.
            assert_eq!(answer, of_nothing, "{method} {path}");
            let said = answer.to_string();
            assert!(!said.contains(&backup) && !said.contains("main"), "{said}");
        }
    }
    // By the path of a project that the caller may see, another one's things are not found.
    let admin = service.log_in(&service.admin_token());
    for (method, path) in changes(&backup, &activity) {
        let other = path.replace("/projects/test/", "/projects/other/");
        let (status, answer) = service.send(method, &other, Some(&admin), "{}");
        assert_eq!(status, 404, "{method} {other}: {answer}");
        let elsewhere = path.replace("/environments/main/", "/environments/elsewhere/");
        if elsewhere != path {
            let (status, answer) = service.send(method, &elsewhere, Some(&admin), "{}");
            assert_eq!(status, 404, "{method} {elsewhere}: {answer}");
        }
    }
    assert_eq!((refusals(&service, &id), refusals(&service, &stranger_id)), (vec![], vec![]));
    service.environment.application.let_go();
    assert!(hanging.join().unwrap().contains(" 200 "));
    service.await_json(&["activity:list"], |all| all[0]["result"] == "success");
    assert_eq!(service.json(&["backups"]).as_array().unwrap().len(), 2);
}
