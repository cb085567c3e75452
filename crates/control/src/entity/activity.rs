//! Every operation is one.

use sea_orm::entity::prelude::*;

/// Every operation is one.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "activities")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Its project.
    #[sea_orm(indexed)]
    pub project: String,
    /// The environment in which it acts.
    pub environment: String,
    /// That environment's type.
    pub environment_kind: String,
    /// `environment.backup`, ...
    pub kind: String,
    /// `pending`, `in_progress`, `complete` or `cancelled`.
    #[sea_orm(indexed)]
    pub state: String,
    /// `success` or `failure`, once it has ended.
    pub result: Option<String>,
    /// 0 to 100.
    pub completion_percent: i32,
    /// What is to be done, as the agent is told.
    pub order: Json,
    /// Cleaning up goes before everything else.
    pub first: bool,
    /// It was asked to stop.
    pub cancelling: bool,
    /// The phase that it is in.
    pub phase: Option<String>,
    /// For people to read.
    pub text: String,
    /// The same with markup.
    pub description: String,
    /// Particulars.
    pub payload: Json,
    /// What failed.
    pub failure: Option<String>,
    /// Who asked; none: the server itself.
    pub user: Option<String>,
    /// Microseconds since 1970.
    #[sea_orm(indexed)]
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
    /// Microseconds since 1970.
    pub started_at: Option<i64>,
    /// Microseconds since 1970.
    pub completed_at: Option<i64>,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
