//! Reads `workers`.

use super::read::{optional, optional_or};
use super::reader::{Errors, Field, Table};
use super::values::{Refusal, list_of, path};
use super::worker::{Engine, Freezer, WorkerPart};

/// The keys of which a worker has exactly one.
const FREEZERS: [&str; 5] = ["pidfile", "cgroup", "container", "systemd", "freeze"];

pub(super) fn worker(mut table: Table<'_>, errors: &mut Errors) -> Option<WorkerPart> {
    let freezer = freezer(&mut table, errors);
    let quiesce = optional(table.take("quiesce"), errors, |f, e| command(&f, e));
    let resume_field = table.take("resume");
    let resume = optional(resume_field.clone(), errors, |f, e| command(&f, e));
    let atomic_field = table.take("atomic");
    let atomic = optional(atomic_field.clone(), errors, |field, errors| field.truth(errors));
    let timeout =
        optional_or(table.take("timeout"), WorkerPart::TIMEOUT, errors, |f, e| f.duration(e));
    table.unsupported("host", errors);
    table.finish(errors);
    if let (Some(None), Some(field)) = (&quiesce, resume_field) {
        let refusal = Refusal::new("there is no `quiesce` that it would end")
            .hint("add `quiesce: COMMAND`, or remove this");
        field.refuse_key(errors, refusal);
    }
    if let (Some(Some(_)), Some(true), Some(field)) = (&quiesce, atomic, atomic_field) {
        let refusal =
            Refusal::new("a worker that finishes its job by `quiesce` need not be atomic")
                .hint("keep one of the two");
        field.refuse_key(errors, refusal);
    }
    Some(WorkerPart {
        freezer: freezer?,
        quiesce: quiesce?,
        resume: resume?,
        atomic: atomic?,
        timeout: timeout?,
    })
}

#[allow(clippy::option_option, reason = "none: it is wrong; none in it: it is not there")]
fn command(field: &Field<'_>, errors: &mut Errors) -> Option<Option<String>> {
    field.text(errors).map(|text| Some(text.to_owned()))
}

fn freezer(table: &mut Table<'_>, errors: &mut Errors) -> Option<Freezer> {
    let [pidfile, cgroup, container, systemd, freeze] = FREEZERS.map(|key| table.take(key));
    let thaw = table.take("thaw");
    let engine = table.take("engine");
    let given = [&pidfile, &cgroup, &container, &systemd, &freeze];
    let given: Vec<&Field<'_>> = given.into_iter().flatten().collect();
    let hint = format!("write exactly one of: {}", list_of(&FREEZERS));
    match given[..] {
        [] => {
            if let Some(thaw) = &thaw {
                let refusal = Refusal::new("there is no `freeze` that it would undo");
                thaw.refuse_key(errors, refusal.hint("add `freeze: COMMAND`"));
            } else {
                let refusal = Refusal::new("nothing says how this worker is frozen");
                table.refuse(errors, refusal.hint(hint));
            }
            return None;
        }
        [_] => {}
        [first, second, ..] => {
            let problem = format!("the worker is frozen by `{}` already", first.name);
            second.refuse_key(errors, Refusal::new(problem).hint(hint));
            return None;
        }
    }
    if let (None, Some(thaw)) = (&freeze, &thaw) {
        let refusal = Refusal::new("only a worker with `freeze` has `thaw`").hint("remove it");
        thaw.refuse_key(errors, refusal);
        return None;
    }
    if let (None, Some(engine)) = (&container, &engine) {
        let refusal = Refusal::new("only a worker with `container` has `engine`");
        engine.refuse_key(errors, refusal.hint("remove it"));
        return None;
    }
    if let Some(field) = pidfile {
        return field.text_as(errors, path).map(Freezer::Pidfile);
    }
    if let Some(field) = cgroup {
        return field.text_as(errors, path).map(Freezer::Cgroup);
    }
    if let Some(field) = systemd {
        return field.text_as(errors, |text| named(text, "unit")).map(Freezer::Systemd);
    }
    if let Some(field) = container {
        let name = field.text_as(errors, |text| named(text, "container"));
        let words = [Engine::Docker, Engine::Podman].map(|engine| (engine.as_str(), engine));
        let engine = optional(engine, errors, |field, errors| field.word(errors, &words).map(Some));
        return Some(Freezer::Container { name: name?, engine: engine? });
    }
    let freeze = freeze?;
    let Some(thaw) = thaw else {
        let refusal = Refusal::new("nothing would let this worker go on")
            .hint("add `thaw: COMMAND`: it may be called again, and when nothing is frozen");
        freeze.refuse_key(errors, refusal);
        return None;
    };
    let (freeze, thaw) = (freeze.text(errors), thaw.text(errors));
    Some(Freezer::Commands { freeze: freeze?.to_owned(), thaw: thaw?.to_owned() })
}

/// A name that goes to another program as an argument.
fn named(given: &str, what: &str) -> Result<String, Refusal> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
    if given.starts_with('-') || !given.chars().all(valid) {
        return Err(Refusal::new(format!("`{given}` is not the name of a {what}")));
    }
    Ok(given.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use std::time::Duration;

    fn file(worker: &str) -> String {
        format!(
            "project: shop\nenvironments:\n  main:\n    type: production\n    mounts:\n      files: {{ \
             path: files }}\n    workers:\n      mailer: {worker}\n"
        )
    }

    fn read(worker: &str) -> WorkerPart {
        let config = parse("f", &file(worker)).unwrap();
        let environment = config.environments.into_values().next().unwrap();
        environment.workers.into_values().next().unwrap()
    }

    #[track_caller]
    fn refused(worker: &str, expected: &str) {
        let told = parse("f", &file(worker)).unwrap_err().to_string();
        assert_eq!(told, format!("f:8:{expected}"));
    }

    #[test]
    fn a_worker_is_frozen_in_one_of_five_ways() {
        let plain = |freezer| WorkerPart {
            freezer,
            quiesce: None,
            resume: None,
            atomic: false,
            timeout: Duration::from_secs(5),
        };
        assert_eq!(read("{ pidfile: run/m.pid }"), plain(Freezer::Pidfile("run/m.pid".into())));
        let cgroup = Freezer::Cgroup("/sys/fs/cgroup/m".into());
        assert_eq!(read("{ cgroup: /sys/fs/cgroup/m }"), plain(cgroup));
        let container = |engine| Freezer::Container { name: "m_1".to_owned(), engine };
        assert_eq!(read("{ container: m_1 }"), plain(container(None)));
        let podman = plain(container(Some(Engine::Podman)));
        assert_eq!(read("{ container: m_1, engine: podman }"), podman);
        assert_eq!(read("{ systemd: shop@1 }"), plain(Freezer::Systemd("shop@1".to_owned())));
        let (freeze, thaw) = ("a b".to_owned(), "c".to_owned());
        assert_eq!(read("{ freeze: a b, thaw: c }"), plain(Freezer::Commands { freeze, thaw }));
    }

    #[test]
    fn what_a_worker_can_do_beside_standing_still_is_read() {
        let worker = read("{ pidfile: p, quiesce: q, resume: r, timeout: 2s }");
        assert_eq!((worker.quiesce.as_deref(), worker.resume.as_deref()), (Some("q"), Some("r")));
        assert_eq!(worker.timeout, Duration::from_secs(2));
        assert!(read("{ pidfile: p, atomic: true }").atomic);
    }

    #[test]
    fn a_worker_that_is_frozen_in_no_way_or_in_two_is_refused() {
        refused(
            "{}",
            "7: key `environments.main.workers.mailer`: nothing says how this worker is frozen; \
             write exactly one of: pidfile, cgroup, container, systemd, freeze",
        );
        refused(
            "{ systemd: a, pidfile: b }",
            "17: key `environments.main.workers.mailer.systemd`: the worker is frozen by `pidfile` \
             already; write exactly one of: pidfile, cgroup, container, systemd, freeze",
        );
        refused(
            "{ freeze: a }",
            "17: key `environments.main.workers.mailer.freeze`: nothing would let this worker go \
             on; add `thaw: COMMAND`: it may be called again, and when nothing is frozen",
        );
        refused(
            "{ thaw: a }",
            "17: key `environments.main.workers.mailer.thaw`: there is no `freeze` that it would \
             undo; add `freeze: COMMAND`",
        );
        refused(
            "{ pidfile: a, thaw: b }",
            "29: key `environments.main.workers.mailer.thaw`: only a worker with `freeze` has \
             `thaw`; remove it",
        );
        refused(
            "{ pidfile: a, engine: docker }",
            "29: key `environments.main.workers.mailer.engine`: only a worker with `container` has \
             `engine`; remove it",
        );
    }

    #[test]
    fn keys_that_do_not_go_together_and_unknown_ones_are_refused() {
        refused(
            "{ pidfile: a, resume: b }",
            "29: key `environments.main.workers.mailer.resume`: there is no `quiesce` that it would \
             end; add `quiesce: COMMAND`, or remove this",
        );
        refused(
            "{ pidfile: a, quiesce: b, atomic: true }",
            "41: key `environments.main.workers.mailer.atomic`: a worker that finishes its job by \
             `quiesce` need not be atomic; keep one of the two",
        );
        refused(
            "{ pidfile: a, atomic: 1 }",
            "37: key `environments.main.workers.mailer.atomic`: expected `true` or `false`, found \
             the number 1",
        );
        refused(
            "{ systemd: -x }",
            "26: key `environments.main.workers.mailer.systemd`: `-x` is not the name of a unit",
        );
        refused(
            "{ pidfile: a, quiese: b }",
            "29: key `environments.main.workers.mailer.quiese`: unknown key; did you mean \
             `quiesce`? Known keys here: pidfile, cgroup, container, systemd, freeze, thaw, engine, \
             quiesce, resume, atomic, timeout",
        );
    }
}
