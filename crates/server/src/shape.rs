//! The API's shapes: HAL objects of projects, environments, backups and activities, and the envelope
//! around whatever changes something.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use stillpoint_control::entity::{activity, backup, environment, project};
use stillpoint_control::{Access, LogLine, micros};

/// A stored time, as the API writes one.
pub(crate) fn time(at: i64) -> String {
    micros(at)
}

/// One segment of a path.
fn segment(text: &str) -> String {
    // What is unreserved in RFC 3986 stays as it is.
    const ENCODED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ENCODED).to_string()
}

fn link(href: impl Into<String>) -> Value {
    json!({ "href": href.into() })
}

/// The envelope of everything that changes something.
pub(crate) fn envelope(activities: &[Value], entity: Option<Value>) -> Value {
    let mut embedded = json!({ "activities": activities });
    if let Some(entity) = entity {
        embedded["entity"] = entity;
    }
    json!({ "status": "Accepted", "code": 202, "_embedded": embedded })
}

/// A project.
pub(crate) fn project_object(
    project: &project::Model,
    default_branch: &str,
    access: &Access,
) -> Value {
    let id = &project.id;
    let own = format!("/projects/{id}");
    let mut links = json!({
        "self": link(&own),
        "environments": link(format!("{own}/environments")),
        "environment-types": link(format!("{own}/environment-types")),
        "access": link(format!("{own}/access")),
        "activities": link(format!("{own}/activities")),
        "settings": link(format!("{own}/settings")),
    });
    if access.is_admin() {
        links["invitations"] = link(format!("{own}/invitations"));
    }
    json!({
        "id": id, "title": project.title, "description": "", "region": project.region,
        "timezone": "UTC", "organization": null, "owner": project.owner, "namespace": "local",
        "vendor": "local", "default_branch": default_branch, "default_domain": null,
        "attributes": {}, "status": { "code": "provisioned", "message": "ok" },
        "repository": { "url": format!("{id}@git.invalid:{id}.git"), "client_ssh_key": null },
        "subscription": {
            "license_uri": "/licenses/1", "storage": 0, "included_users": 0,
            "subscription_management_uri": "", "restricted": false, "suspended": false,
            "user_licenses": 0,
        },
        "created_at": time(project.created_at), "updated_at": time(project.updated_at),
        "_links": links,
    })
}

fn environment_path(project: &str, name: &str) -> String {
    format!("/projects/{project}/environments/{}", segment(name))
}

/// An environment, with links for what the caller may do with it now.
pub(crate) fn environment_object(
    environment: &environment::Model,
    dirty: bool,
    last_backup: Option<i64>,
    access: &Access,
) -> Value {
    let own = environment_path(&environment.project, &environment.name);
    let main = environment.kind == "production";
    let mut links = json!({
        "self": link(&own),
        "backups": link(format!("{own}/backups")),
        "#activities": link(format!("{own}/activities")),
        "#variables": link(format!("{own}/variables")),
    });
    if access.is_admin_of(&environment.kind) {
        links["#edit"] = link(&own);
        match environment.status.as_str() {
            "active" => {
                links["#backup"] = link(format!("{own}/backup"));
                links["#deactivate"] = link(format!("{own}/deactivate"));
            }
            "inactive" if environment.configured => {
                links["#activate"] = link(format!("{own}/activate"));
            }
            _ => {}
        }
    }
    json!({
        "id": environment.name, "name": environment.name,
        "machine_name": environment.name.replace('/', "-"), "title": environment.title,
        "type": environment.kind, "status": environment.status, "parent": null,
        "project": environment.project, "attributes": {}, "is_main": main, "is_dirty": dirty,
        "is_pr": false, "has_code": true, "has_remote": false,
        "has_deployment": environment.status == "active", "has_domains": false,
        "has_staged_activities": false, "can_rolling_deploy": false,
        "head_commit": environment.head_commit, "default_domain": null, "edge_hostname": "",
        "enable_smtp": false, "restrict_robots": true, "supports_restrict_robots": false,
        "deployment_target": "local", "deployment_state": null, "clone_parent_on_create": true,
        "http_access": { "is_enabled": false, "addresses": [], "basic_auth": {} },
        "merge_info": { "commits_ahead": null, "commits_behind": null, "parent_ref": null },
        "max_instance_count": null, "last_active_at": null,
        "last_backup_at": last_backup.map(time),
        "created_at": time(environment.created_at), "updated_at": time(environment.updated_at),
        "_links": links,
    })
}

/// A backup. `quorum`: how many complete copies make it done.
pub(crate) fn backup_object(backup: &backup::Model, quorum: i32, access: &Access) -> Value {
    let own =
        format!("{}/backups/{}", environment_path(&backup.project, &backup.environment), backup.id);
    let manifest = &backup.manifest;
    let restorable = backup.status == "CREATED";
    let mut links = json!({ "self": link(&own) });
    if restorable && access.is_admin_of(&backup.kind) {
        links["#restore"] = link(format!("{own}/restore"));
        links["#delete"] = link(&own);
    }
    let mut attributes =
        serde_json::from_value::<stillpoint_model::manifest::Manifest>(manifest.clone())
            .map(|manifest| manifest.attributes())
            .unwrap_or_default();
    attributes.insert("bytes_added".to_owned(), backup.bytes_added.to_string());
    attributes.insert("copies".to_owned(), backup.copies.to_string());
    let replication = if backup.copies < quorum { "replicating" } else { "done" };
    attributes.insert("replication".to_owned(), replication.to_owned());
    let megabytes = |bytes: i64| bytes / 1_000_000;
    json!({
        "id": backup.id, "environment": backup.environment, "status": backup.status,
        "safe": backup.safe, "restorable": restorable, "automated": false, "index": null,
        "commit_id": manifest["code"]["commit"],
        "created_at": time(backup.created_at), "updated_at": time(backup.updated_at),
        "expires_at": null, "size_of_volumes": megabytes(backup.bytes_captured),
        "size_used": megabytes(backup.bytes_added), "size_object_storage": null,
        "deployment": null, "attributes": attributes,
        "gaps": manifest["gaps"], "doubts": manifest["doubts"], "parts": manifest["parts"],
        "evidence": manifest["evidence"],
        "_links": links,
    })
}

/// An activity; `log` is its whole text so far, where that is asked for.
pub(crate) fn activity_object(
    activity: &activity::Model,
    log: &[LogLine],
    can_cancel: bool,
) -> Value {
    let own = format!("/projects/{}/activities/{}", activity.project, activity.id);
    let mut links = json!({ "self": link(&own), "log": link(format!("{own}/log")) });
    if can_cancel {
        links["#cancel"] = link(format!("{own}/cancel"));
    }
    let seconds = |from: i64, to: i64| (to - from).max(0) as f64 / 1e6;
    let mut timings = json!({});
    if let Some(started) = activity.started_at {
        timings["wait"] = seconds(activity.created_at, started).into();
        if let Some(completed) = activity.completed_at {
            timings["execute"] = seconds(started, completed).into();
        }
    }
    let cancelled = activity.state == "cancelled";
    let text: String = log.iter().flat_map(|line| [line.line.as_str(), "\n"]).collect();
    json!({
        "id": activity.id, "type": activity.kind, "project": activity.project,
        "environments": [activity.environment], "state": activity.state,
        "result": activity.result, "completion_percent": activity.completion_percent,
        "phase": activity.phase, "cancelling": activity.cancelling,
        "created_at": time(activity.created_at), "updated_at": time(activity.updated_at),
        "started_at": activity.started_at.map(time),
        "completed_at": activity.completed_at.map(time),
        "cancelled_at": activity.completed_at.filter(|_| cancelled).map(time),
        "expires_at": null, "integration": null,
        "text": activity.text, "description": activity.description, "timings": timings,
        "parameters": {}, "payload": activity.payload, "log": text, "commands": [],
        "failure_reason": activity.failure,
        "_links": links,
    })
}
