//! A project.

use sea_orm::entity::prelude::*;

/// A project.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "projects")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// For people to read.
    pub title: String,
    /// Where its backups go.
    pub region: String,
    /// Its owner.
    pub owner: String,
    /// How many complete copies make a backup done.
    pub write_quorum: i32,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
