//! What a user may do in a project.

use sea_orm::entity::prelude::*;

/// What a user may do in a project.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "members")]
pub struct Model {
    /// The project.
    #[sea_orm(primary_key, auto_increment = false)]
    pub project: String,
    /// The user.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user: String,
    /// `admin`: of everything in it, or `viewer`.
    pub role: String,
    /// The role for production: `admin`, `contributor`, `viewer` or none.
    pub production: Option<String>,
    /// The same for staging.
    pub staging: Option<String>,
    /// The same for development.
    pub development: Option<String>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
