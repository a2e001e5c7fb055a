"""Alembic runs this file: the scripts work on the transaction that `upgrade` holds open."""

from alembic import context

from sayso.feedback import work_tables

context.configure(
    connection=context.config.attributes["connection"], target_metadata=work_tables.metadata
)
with context.begin_transaction():
    context.run_migrations()
