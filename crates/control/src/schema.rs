//! The datastore's schema, as migrations that only go forward. A datastore with a migration that is
//! not known here is of a newer version, and is refused before anything is written.

use crate::entity::{
    activity, api_token, audit, backup, environment, log_line, member, project, user,
};
use sea_orm::{EntityTrait, Schema};
use sea_orm_migration::prelude::*;

/// All migrations.
pub(crate) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(First)]
    }
}

/// The first schema.
struct First;

impl MigrationName for First {
    fn name(&self) -> &'static str {
        "m0001_first"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for First {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create(manager, user::Entity).await?;
        create(manager, api_token::Entity).await?;
        create(manager, project::Entity).await?;
        create(manager, environment::Entity).await?;
        create(manager, member::Entity).await?;
        create(manager, backup::Entity).await?;
        create(manager, activity::Entity).await?;
        create(manager, log_line::Entity).await?;
        create(manager, audit::Entity).await
    }
}

async fn create<E: EntityTrait>(manager: &SchemaManager<'_>, entity: E) -> Result<(), DbErr> {
    let schema = Schema::new(manager.get_database_backend());
    manager.create_table(schema.create_table_from_entity(entity)).await?;
    for index in schema.create_index_from_entity(entity) {
        manager.create_index(index).await?;
    }
    Ok(())
}
