//! The page that lists every key, made from the declarations.

use std::fmt::Write as _;

use crate::Config;
use crate::section::{Declared, Section as _};

/// `docs/reference/buildkitd.toml.md`.
pub fn reference() -> String {
    let mut keys = Vec::new();
    Config::declared("", &mut keys);
    let mut page = String::from(
        "# buildkitd.toml\n\n\
         Generated from `crates/config`; `cargo xtask bless` renews it.\n\n\
         Read from `/etc/buildkit/buildkitd.toml`; an ordinary user's `~/.config/buildkit/buildkitd.toml`\n\
         (`$XDG_CONFIG_HOME/buildkit/buildkitd.toml`) stands on top of it, key by key. With `--config` only that file\n\
         is read. Keys match in any case. Unknown keys are warned about and ignored.\n\n\
         A mirror that speaks plain HTTP, and a registry with a certificate authority of its own (registries at `127.0.0.1` and\n\
         `localhost` are asked by plain HTTP, too, without being named):\n\
         \n\
         ```toml\n\
         [registry.\"docker.io\"]\n\
         \x20 mirrors = [\"mirror.example.com:5000\"]\n\
         [registry.\"mirror.example.com:5000\"]\n\
         \x20 http = true\n\
         [registry.\"registry.example.com\"]\n\
         \x20 ca = [\"/etc/registry/ca.pem\"]\n\
         ```\n\
         \n\
         `[]` stands for each entry of a list of tables, `\"*\"` for any name.\n\n\
         | key | value | meaning |\n| --- | --- | --- |\n",
    );
    for Declared { path, form, docs } in keys {
        let form = if form.is_empty() { "a table".to_owned() } else { form };
        let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(page, "| `{path}` | {form} | {docs} |");
    }
    page
}
