//! The record of who asked for what. Only ever added to.

use crate::entity::audit;
use crate::error::ControlError;
use crate::store::{Control, now};
use sea_orm::{ActiveValue::Set, EntityTrait, QueryOrder};

impl Control {
    pub(crate) async fn audit(
        &self,
        user: Option<&str>,
        action: &str,
        subject: &str,
        allowed: bool,
    ) -> Result<(), ControlError> {
        let entry = audit::ActiveModel {
            at: Set(now()),
            user: Set(user.map(str::to_owned)),
            action: Set(action.to_owned()),
            subject: Set(subject.to_owned()),
            allowed: Set(allowed),
            ..Default::default()
        };
        let change = self.change().await?;
        audit::Entity::insert(entry).exec(change.db()).await?;
        change.keep().await
    }

    /// Everything on record, the oldest first.
    pub async fn audit_log(&self) -> Result<Vec<audit::Model>, ControlError> {
        Ok(audit::Entity::find().order_by_asc(audit::Column::Id).all(self.db()).await?)
    }
}
