//! Registry credentials of the user: docker's `config.json` and its helpers.

use session::local::LocalSession;

use crate::environment::Environment;

/// Gives the session the user's credentials.
pub fn add(session: LocalSession, environment: &Environment) -> LocalSession {
    let _ = environment.docker_config_dir();
    session
}
