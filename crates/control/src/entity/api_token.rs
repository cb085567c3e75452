//! A long-lived secret of a user; only its hash is known.

use sea_orm::entity::prelude::*;

/// A long-lived secret of a user; only its hash is known.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "api_tokens")]
pub struct Model {
    /// A UUID.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Whose it is.
    #[sea_orm(indexed)]
    pub user: String,
    /// Unique among the user's.
    pub name: String,
    /// SHA-256 of the token, in hexadecimal digits.
    #[sea_orm(unique)]
    pub hash: String,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// When it was last exchanged.
    pub last_used_at: Option<i64>,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
