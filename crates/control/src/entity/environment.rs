//! An environment.

use sea_orm::entity::prelude::*;

/// An environment.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "environments")]
pub struct Model {
    /// Its project.
    #[sea_orm(primary_key, auto_increment = false)]
    pub project: String,
    /// Its name.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// For people to read.
    pub title: String,
    /// `production`, `staging` or `development`.
    pub kind: String,
    /// `active` or `inactive`.
    pub status: String,
    /// The commit that its code was at when the agent last connected.
    pub head_commit: Option<String>,
    /// False once the configuration does not have it any more.
    pub configured: bool,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
