//! Registry credentials of the user: docker's `config.json` and its helpers.

use base::Secret;
use session::local::LocalSession;
use session::local::docker_config::DockerConfig;

use crate::environment::Environment;

/// Gives the session the user's credentials.
pub fn add(session: LocalSession, environment: &Environment) -> LocalSession {
    let inline = environment.get("DOCKER_AUTH_CONFIG").map(Secret::new);
    match environment.docker_config_dir() {
        Some(dir) => session.with_credentials(DockerConfig::new(dir).with_inline(inline)),
        // Without a home there is still the variable; the directory is one that has no configuration.
        None if inline.is_some() => session.with_credentials(DockerConfig::new("/dev/null").with_inline(inline)),
        None => session,
    }
}
