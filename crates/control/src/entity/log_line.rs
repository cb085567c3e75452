//! One line of an activity's log.

use sea_orm::entity::prelude::*;

/// One line of an activity's log.
#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "log_lines")]
pub struct Model {
    /// The activity.
    #[sea_orm(primary_key, auto_increment = false)]
    pub activity: String,
    /// From 0.
    #[sea_orm(primary_key, auto_increment = false)]
    pub number: i64,
    /// Microseconds since 1970.
    pub at: i64,
    /// The line, without a newline at its end.
    pub line: String,
}

/// None: the use cases join what they need.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
