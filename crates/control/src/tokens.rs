//! API tokens, of which only hashes are stored, and the short-lived access tokens that they are
//! exchanged for. Those live in memory: after a restart a client gets a new one with its API token.
//! Both are looked up by their hash, so no comparison tells anything about them by its time.

use crate::access::Caller;
use crate::entity::{api_token, user};
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder,
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Mutex;

/// How long an access token is good for, in seconds.
const SECONDS: i64 = 900;

/// An access token, just given out.
#[derive(Debug)]
pub struct AccessToken {
    /// The secret itself.
    pub token: String,
    /// How long it is good for, in seconds.
    pub expires_in: i64,
}

/// An API token, just made.
pub struct CreatedToken {
    /// What is stored of it.
    pub model: api_token::Model,
    /// The secret itself, to be shown once.
    pub secret: String,
}

/// Those that are good now, by their hashes.
#[derive(Default)]
pub(crate) struct AccessTokens(Mutex<HashMap<String, Granted>>);

#[derive(Clone)]
struct Granted {
    api_token: String,
    expires: i64,
}

impl AccessTokens {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Granted>> {
        self.0.lock().expect("no holder of the tokens panicked")
    }
}

/// 256 random bits in lower-case hexadecimal digits, after a prefix that says whose they are.
fn secret() -> String {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    hex("sp_", &bytes)
}

fn hash(secret: &str) -> String {
    hex("", &Sha256::digest(secret.as_bytes()))
}

fn hex(prefix: &str, bytes: &[u8]) -> String {
    bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written to");
        text
    })
}

impl Control {
    /// Exchanges an API token for an access token.
    pub async fn exchange(&self, api_token: &str) -> Result<AccessToken, ControlError> {
        let found = api_token::Entity::find()
            .filter(api_token::Column::Hash.eq(hash(api_token)))
            .one(self.db())
            .await?;
        let Some(found) = found else {
            self.audit(None, "token.exchange", "unknown token", false).await?;
            return Err(ControlError::InvalidApiToken);
        };
        let id = found.id.clone();
        let mut used: api_token::ActiveModel = found.into();
        used.last_used_at = Set(Some(now()));
        match self.used(used).await {
            // When it was last used is not worth shutting out who comes to make room.
            Err(error @ ControlError::Full(_)) => tracing::error!("log a user in: {error}"),
            other => other?,
        }
        let token = secret();
        let mut good = self.inner.access_tokens.lock();
        let at = now();
        good.retain(|_, granted| granted.expires > at);
        good.insert(hash(&token), Granted { api_token: id, expires: at + SECONDS * 1_000_000 });
        Ok(AccessToken { token, expires_in: SECONDS })
    }

    async fn used(&self, token: api_token::ActiveModel) -> Result<(), ControlError> {
        let change = self.change().await?;
        token.update(change.db()).await?;
        change.keep().await
    }

    /// Whose access token this is. It is good only for as long as its API token and user exist.
    pub async fn authenticate(&self, access_token: &str) -> Result<Caller, ControlError> {
        let granted = self.inner.access_tokens.lock().get(&hash(access_token)).cloned();
        let granted = granted.filter(|granted| granted.expires > now());
        let granted = granted.ok_or(ControlError::InvalidAccessToken)?;
        let token = api_token::Entity::find_by_id(&granted.api_token).one(self.db()).await?;
        let token = token.ok_or(ControlError::InvalidAccessToken)?;
        let user = user::Entity::find_by_id(&token.user).one(self.db()).await?;
        Ok(Caller { user: user.ok_or(ControlError::InvalidAccessToken)? })
    }

    /// Ends an access token; one that is unknown is fine.
    pub fn revoke(&self, access_token: &str) {
        self.inner.access_tokens.lock().remove(&hash(access_token));
    }

    /// The user's API tokens. Only the user sees them.
    pub async fn api_tokens(
        &self,
        caller: &Caller,
        user: &str,
    ) -> Result<Vec<api_token::Model>, ControlError> {
        self.owns_tokens(caller, user).await?;
        Ok(api_token::Entity::find()
            .filter(api_token::Column::User.eq(user))
            .order_by_asc(api_token::Column::CreatedAt)
            .all(self.db())
            .await?)
    }

    /// Makes an API token; its secret is never seen again.
    pub async fn create_api_token(
        &self,
        caller: &Caller,
        user: &str,
        name: &str,
    ) -> Result<CreatedToken, ControlError> {
        self.owns_tokens(caller, user).await?;
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            let why = "1 to 100 characters, none of them a control character".to_owned();
            return Err(ControlError::Invalid { field: "name", why });
        }
        let taken = self.api_tokens(caller, user).await?.iter().any(|token| token.name == name);
        if taken {
            return Err(ControlError::Conflict(format!("there is a token `{name}` already")));
        }
        self.audit(Some(&caller.user.id), "api-token.create", user, true).await?;
        self.make_api_token(user, name).await
    }

    pub(crate) async fn make_api_token(
        &self,
        user: &str,
        name: &str,
    ) -> Result<CreatedToken, ControlError> {
        let secret = secret();
        let model = api_token::ActiveModel {
            id: Set(uuid::Uuid::new_v4().to_string()),
            user: Set(user.to_owned()),
            name: Set(name.to_owned()),
            hash: Set(hash(&secret)),
            created_at: Set(now()),
            last_used_at: Set(None),
        };
        let change = self.change().await?;
        let model = model.insert(change.db()).await?;
        change.keep().await?;
        Ok(CreatedToken { model, secret })
    }

    /// Revokes an API token, and at once every access token that it was exchanged for.
    pub async fn delete_api_token(
        &self,
        caller: &Caller,
        user: &str,
        id: &str,
    ) -> Result<(), ControlError> {
        self.owns_tokens(caller, user).await?;
        let found = api_token::Entity::find_by_id(id)
            .filter(api_token::Column::User.eq(user))
            .one(self.db())
            .await?
            .ok_or(ControlError::NotFound("API token"))?;
        self.audit(Some(&caller.user.id), "api-token.delete", user, true).await?;
        let change = self.change().await?;
        api_token::Entity::delete_by_id(&found.id).exec(change.db()).await?;
        change.keep().await?;
        self.inner.access_tokens.lock().retain(|_, granted| granted.api_token != found.id);
        Ok(())
    }

    /// A user's own, or those of a machine that an admin of one of its projects looks after.
    async fn owns_tokens(&self, caller: &Caller, user: &str) -> Result<(), ControlError> {
        if caller.user.id == user || self.looks_after(caller, user).await? {
            Ok(())
        } else {
            Err(ControlError::NotFound("User"))
        }
    }
}
