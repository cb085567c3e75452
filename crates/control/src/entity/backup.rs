//! A backup that can be seen.

use sea_orm::entity::prelude::*;

/// A backup that can be seen.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "backups")]
pub struct Model {
    /// Its id.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Its project.
    #[sea_orm(indexed)]
    pub project: String,
    /// The environment that it is of.
    pub environment: String,
    /// That environment's type when it was taken.
    pub kind: String,
    /// `CREATED` or `DELETING`.
    pub status: String,
    /// False: live.
    pub safe: bool,
    /// The manifest.
    pub manifest: Json,
    /// Bytes captured.
    pub bytes_captured: i64,
    /// Bytes added to each location.
    pub bytes_added: i64,
    /// At how many locations it is complete.
    pub copies: i32,
    /// When it was asked for, microseconds since 1970.
    #[sea_orm(indexed)]
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
