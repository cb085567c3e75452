//! Users, and what they may do in a project.

use crate::access::{Caller, TypeRole};
use crate::entity::{api_token, member, project, user};
use crate::error::ControlError;
use crate::store::{Control, now};
use crate::tokens::CreatedToken;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter,
    QueryOrder,
};

/// A user to be added to a project.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// The e-mail address; a machine has one too, as its name.
    pub email: String,
    /// For automation: it has tokens, and nobody logs in as it.
    pub machine: bool,
    /// `admin` or `viewer`.
    pub role: String,
    /// Roles by type, each as (`staging`, `admin`).
    pub permissions: Vec<(String, String)>,
}

/// A user in a project.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Who.
    pub user: user::Model,
    /// What they may do.
    pub member: member::Model,
}

impl Membership {
    /// As the API writes it: `viewer`, `staging:admin`, ...
    pub fn permissions(&self) -> Vec<String> {
        let member = &self.member;
        let types = [
            ("production", &member.production),
            ("staging", &member.staging),
            ("development", &member.development),
        ];
        let by_type = types
            .into_iter()
            .filter_map(|(kind, role)| role.as_ref().map(|role| format!("{kind}:{role}")));
        std::iter::once(member.role.clone()).chain(by_type).collect()
    }
}

impl Control {
    /// Makes the first administrator if there is no user yet, and a token for it.
    pub async fn bootstrap(&self) -> Result<Option<CreatedToken>, ControlError> {
        if user::Entity::find().count(self.db()).await? > 0 {
            return Ok(None);
        }
        let admin = self.insert_user("admin@localhost", "admin", false).await?;
        self.audit(None, "user.create", "admin", true).await?;
        self.make_api_token(&admin.id, "first administrator").await.map(Some)
    }

    async fn insert_user(
        &self,
        email: &str,
        username: &str,
        machine: bool,
    ) -> Result<user::Model, ControlError> {
        let at = now();
        let model = user::ActiveModel {
            id: Set(uuid::Uuid::new_v4().to_string()),
            username: Set(username.to_owned()),
            email: Set(email.to_owned()),
            display_name: Set(username.to_owned()),
            machine: Set(machine),
            created_at: Set(at),
            updated_at: Set(at),
        };
        let change = self.change().await?;
        let model = model.insert(change.db()).await?;
        change.keep().await?;
        Ok(model)
    }

    /// A user whom the caller may know of: itself, or one of a project that both are in.
    pub async fn user(&self, caller: &Caller, id: &str) -> Result<user::Model, ControlError> {
        if caller.user.id == id {
            return Ok(caller.user.clone());
        }
        let unknown = ControlError::NotFound("User");
        let theirs = self.projects_of(id).await?;
        let ours = self.projects_of(&caller.user.id).await?;
        if !ours.iter().any(|project| theirs.contains(project)) {
            return Err(unknown);
        }
        user::Entity::find_by_id(id).one(self.db()).await?.ok_or(unknown)
    }

    async fn projects_of(&self, user: &str) -> Result<Vec<String>, ControlError> {
        let members =
            member::Entity::find().filter(member::Column::User.eq(user)).all(self.db()).await?;
        Ok(members.into_iter().map(|member| member.project).collect())
    }

    /// Whether `user` is a machine of a project that the caller is an admin of.
    pub(crate) async fn looks_after(
        &self,
        caller: &Caller,
        user: &str,
    ) -> Result<bool, ControlError> {
        let machine = user::Entity::find_by_id(user).one(self.db()).await?;
        if !machine.is_some_and(|user| user.machine) {
            return Ok(false);
        }
        for project in self.projects_of(user).await? {
            if self.access(caller, &project).await.is_ok_and(|access| access.is_admin()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Everybody in a project.
    pub async fn members(
        &self,
        caller: &Caller,
        project: &str,
    ) -> Result<Vec<Membership>, ControlError> {
        self.access(caller, project).await?;
        let members = member::Entity::find()
            .filter(member::Column::Project.eq(project))
            .order_by_asc(member::Column::CreatedAt)
            .all(self.db())
            .await?;
        let mut all = Vec::new();
        for member in members {
            if let Some(user) = user::Entity::find_by_id(&member.user).one(self.db()).await? {
                all.push(Membership { user, member });
            }
        }
        Ok(all)
    }

    /// Adds a user to a project; who is not known yet is made. A member's roles are replaced.
    pub async fn add_member(
        &self,
        caller: &Caller,
        project: &str,
        new: &NewUser,
    ) -> Result<Membership, ControlError> {
        self.admin_access(caller, project, "user.add").await?;
        let member = roles(project, new)?;
        let email = new.email.trim().to_lowercase();
        let plausible = email.len() <= 200
            && email
                .split_once('@')
                .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
            && !email.chars().any(|c| c.is_control() || c.is_whitespace());
        if !plausible {
            let why = "this is not an e-mail address".to_owned();
            return Err(ControlError::Invalid { field: "email", why });
        }
        let known =
            user::Entity::find().filter(user::Column::Email.eq(&email)).one(self.db()).await?;
        let user = match known {
            Some(user) => user,
            None => self.insert_user(&email, &email, new.machine).await?,
        };
        let owner = project::Entity::find_by_id(project).one(self.db()).await?;
        if owner.is_some_and(|project| project.owner == user.id) && new.role != "admin" {
            return Err(ControlError::Conflict("the owner of a project stays its admin".into()));
        }
        let member = member::Model { user: user.id.clone(), ..member };
        let change = self.change().await?;
        member::Entity::delete_by_id((project.to_owned(), user.id.clone()))
            .exec(change.db())
            .await?;
        let active: member::ActiveModel = member.into();
        let member = active.insert(change.db()).await?;
        change.keep().await?;
        Ok(Membership { user, member })
    }

    /// Takes a user out of a project. Who is in no project any more is removed, with all tokens.
    pub async fn remove_member(
        &self,
        caller: &Caller,
        project: &str,
        user: &str,
    ) -> Result<(), ControlError> {
        self.admin_access(caller, project, "user.delete").await?;
        let id = (project.to_owned(), user.to_owned());
        if member::Entity::find_by_id(id.clone()).one(self.db()).await?.is_none() {
            return Err(ControlError::NotFound("User"));
        }
        let of = project::Entity::find_by_id(project).one(self.db()).await?;
        if of.is_some_and(|project| project.owner == user) {
            return Err(ControlError::Conflict("the owner of a project cannot be removed".into()));
        }
        let change = self.change().await?;
        member::Entity::delete_by_id(id).exec(change.db()).await?;
        let left =
            member::Entity::find().filter(member::Column::User.eq(user)).count(change.db()).await?;
        if left == 0 {
            api_token::Entity::delete_many()
                .filter(api_token::Column::User.eq(user))
                .exec(change.db())
                .await?;
            user::Entity::delete_by_id(user).exec(change.db()).await?;
        }
        change.keep().await?;
        Ok(())
    }
}

/// The roles that were asked for, if there are such.
fn roles(project: &str, new: &NewUser) -> Result<member::Model, ControlError> {
    let invalid = |why: String| ControlError::Invalid { field: "permissions", why };
    if !["admin", "viewer"].contains(&new.role.as_str()) {
        let why = "`admin` or `viewer`".to_owned();
        return Err(ControlError::Invalid { field: "role", why });
    }
    let at = now();
    let mut member = member::Model {
        project: project.to_owned(),
        user: String::new(),
        role: new.role.clone(),
        production: None,
        staging: None,
        development: None,
        created_at: at,
        updated_at: at,
    };
    for (kind, role) in &new.permissions {
        if TypeRole::parse(role).is_none() {
            return Err(invalid(format!("`{role}`: `admin`, `contributor` or `viewer`")));
        }
        let place = match kind.as_str() {
            "production" => &mut member.production,
            "staging" => &mut member.staging,
            "development" => &mut member.development,
            _ => return Err(invalid(format!("`{kind}` is not a type of environments"))),
        };
        *place = Some(role.clone());
    }
    if new.role == "admin" && !new.permissions.is_empty() {
        return Err(invalid("an admin of the project has every role already".to_owned()));
    }
    if new.role == "viewer" && new.permissions.is_empty() {
        return Err(invalid("a viewer needs a role for at least one type".to_owned()));
    }
    Ok(member)
}
