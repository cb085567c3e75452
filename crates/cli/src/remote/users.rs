//! `user:*` and `api-token:*`.

use super::{Session, cell, list, segment};
use crate::arguments::{Format, Global, TokenCommand, UserCommand};
use crate::failure::Failure;
use crate::output::{put, rows};
use serde_json::{Value, json};

/// `user:*`.
pub(crate) fn run(global: &Global, command: &UserCommand) -> Result<(), Failure> {
    let session = Session::new(global)?;
    match command {
        UserCommand::List => {
            let found = session.client.get(&session.path("/access"))?;
            session.print(&found, &["email", "id", "permissions"], |access| {
                let permissions: Vec<String> =
                    list(&access["permissions"]).iter().map(cell).collect();
                vec![email(access), cell(&access["user"]), permissions.join(" ")]
            })
        }
        UserCommand::Add { email, roles, machine } => {
            let mut body = json!({ "email": email, "machine": machine, "role": "viewer" });
            let mut permissions = Vec::new();
            for role in roles {
                match role.split_once(':') {
                    Some((kind, role)) => permissions.push(json!({ "type": kind, "role": role })),
                    None => body["role"] = role.clone().into(),
                }
            }
            body["permissions"] = permissions.into();
            let added = session.client.post(&session.path("/invitations"), &body)?;
            session.terminal.say(&format!("{email} is in project `{}` now", session.project));
            put(&cell(&added["id"]))
        }
        UserCommand::Delete { email } => {
            let user = find(&session, email)?;
            session.confirm(&format!("Take {email} out of project `{}`?", session.project))?;
            session.client.delete(&session.path(&format!("/access/{}", segment(&user))))?;
            session
                .terminal
                .say(&format!("{email} is not in project `{}` any more", session.project));
            Ok(())
        }
    }
}

fn email(access: &Value) -> String {
    cell(&access["_embedded"]["users"][0]["email"])
}

/// A user's id, by e-mail address or id.
fn find(session: &Session<'_>, given: &str) -> Result<String, Failure> {
    let found = session.client.get(&session.path("/access"))?;
    list(&found)
        .iter()
        .find(|access| email(access).eq_ignore_ascii_case(given) || access["user"] == given)
        .map(|access| cell(&access["user"]))
        .ok_or_else(|| {
            Failure::new(format!("{given} is not in project `{}`", session.project))
                .hint("`stillpoint user:list` shows who is")
        })
}

/// `api-token:*`.
pub(crate) fn tokens(global: &Global, command: &TokenCommand) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let owner = |user: &Option<String>| match user {
        Some(user) => find(&session, user),
        None => Ok(cell(&session.client.get("/users/me")?["id"])),
    };
    let path = |user: &str, rest: &str| format!("/users/{}/api-tokens{rest}", segment(user));
    match command {
        TokenCommand::List { user } => {
            let found = session.client.get(&path(&owner(user)?, ""))?;
            session.print(&found, &["id", "name", "created", "last used"], |token| {
                vec![
                    cell(&token["id"]),
                    cell(&token["name"]),
                    cell(&token["created_at"]),
                    cell(&token["last_used_at"]),
                ]
            })
        }
        TokenCommand::Create { name, user } => {
            let made = session.client.post(&path(&owner(user)?, ""), &json!({ "name": name }))?;
            session.terminal.say("keep it: it is not shown again");
            match global.format {
                Format::Json => put(&format!("{made:#}")),
                _ => rows(Format::Plain, &[], &[vec![cell(&made["token"])]]),
            }
        }
        TokenCommand::Delete { token, user } => {
            let user = owner(user)?;
            let found = session.client.get(&path(&user, ""))?;
            let named = list(&found).iter().find(|t| t["id"] == *token || t["name"] == *token);
            let id = named.map(|token| cell(&token["id"])).ok_or_else(|| {
                Failure::new(format!("there is no API token `{token}`"))
                    .hint("`stillpoint api-token:list` shows them")
            })?;
            session.confirm(&format!("Revoke API token `{token}`?"))?;
            session.client.delete(&path(&user, &format!("/{id}")))?;
            session.terminal.say(&format!("API token `{token}` was revoked"));
            Ok(())
        }
    }
}
