//! Who may do what: the roles of a caller in a project.

use crate::entity::{member, user};
use crate::error::ControlError;
use crate::store::Control;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user.
    pub user: user::Model,
}

/// A role for one type of environments, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TypeRole {
    /// May see.
    Viewer,
    /// May see, and branch.
    Contributor,
    /// May do everything.
    Admin,
}

impl TypeRole {
    /// The role of that name.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "viewer" => Some(Self::Viewer),
            "contributor" => Some(Self::Contributor),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// What a caller may do in one project.
#[derive(Debug, Clone)]
pub struct Access {
    member: member::Model,
}

impl Access {
    /// Of everything in the project.
    pub fn is_admin(&self) -> bool {
        self.member.role == "admin"
    }

    /// The role for environments of this type, if any.
    pub fn role(&self, kind: &str) -> Option<TypeRole> {
        if self.is_admin() {
            return Some(TypeRole::Admin);
        }
        let word = match kind {
            "production" => &self.member.production,
            "staging" => &self.member.staging,
            "development" => &self.member.development,
            _ => &None,
        };
        word.as_deref().and_then(TypeRole::parse)
    }

    /// Whether environments of this type may be seen.
    pub fn sees(&self, kind: &str) -> bool {
        self.role(kind).is_some()
    }

    /// Whether everything may be done with environments of this type.
    pub fn is_admin_of(&self, kind: &str) -> bool {
        self.role(kind) == Some(TypeRole::Admin)
    }
}

impl Control {
    /// What the caller may do in a project; to others than its members there is none.
    pub async fn access(&self, caller: &Caller, project: &str) -> Result<Access, ControlError> {
        let member = member::Entity::find()
            .filter(member::Column::Project.eq(project))
            .filter(member::Column::User.eq(&caller.user.id))
            .one(self.db())
            .await?;
        member.map(|member| Access { member }).ok_or(ControlError::NotFound("Project"))
    }

    /// The same, for those who may do everything in the project; others are refused, on record.
    pub(crate) async fn admin_access(
        &self,
        caller: &Caller,
        project: &str,
        action: &str,
    ) -> Result<Access, ControlError> {
        let access = self.access(caller, project).await?;
        self.judge(caller, action, project, access.is_admin(), "an admin of the project").await?;
        Ok(access)
    }

    /// Writes down who asked for what, and refuses those who may not.
    pub(crate) async fn judge(
        &self,
        caller: &Caller,
        action: &str,
        subject: &str,
        allowed: bool,
        needed: &str,
    ) -> Result<(), ControlError> {
        self.audit(Some(&caller.user.id), action, subject, allowed).await?;
        if allowed {
            Ok(())
        } else {
            Err(ControlError::Forbidden(format!("{action} needs {needed}")))
        }
    }
}
