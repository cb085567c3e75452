//! A person or a machine that may ask for things.

use sea_orm::entity::prelude::*;

/// A person or a machine that may ask for things.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// A UUID.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Unique.
    #[sea_orm(unique)]
    pub username: String,
    /// Unique.
    #[sea_orm(unique)]
    pub email: String,
    /// For people to read.
    pub display_name: String,
    /// A machine's, for automation.
    pub machine: bool,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
