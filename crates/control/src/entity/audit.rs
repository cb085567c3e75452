//! Who asked for what, and whether they were let.

use sea_orm::entity::prelude::*;

/// Who asked for what, and whether they were let.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "audit")]
pub struct Model {
    /// From 1.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// Microseconds since 1970.
    pub at: i64,
    /// Who asked; none: nobody known.
    pub user: Option<String>,
    /// What for: `backup.create`, ...
    pub action: String,
    /// On what: `PROJECT/ENVIRONMENT`, ...
    pub subject: String,
    /// Whether they were let.
    pub allowed: bool,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
