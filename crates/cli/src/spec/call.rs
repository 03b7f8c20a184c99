//! `--call`: a question about the Dockerfile in the place of a build.

use base::Fault;

use super::{csv, invalid};
use crate::daemonless::Call;

/// `NAME[,format=FORMAT]`: what the frontend is asked, and how the answer is shown. None is a build.
pub fn call(value: &str) -> Result<Option<(&'static str, Call)>, Fault> {
    const FLAG: &str = "--call";
    let fields = csv::fields(value).map_err(|error| invalid(FLAG, value, error))?;
    let (mut name, mut json) = ("build", false);
    for field in &fields {
        match field.split_once('=') {
            None => name = field,
            Some(("format", "json")) => json = true,
            Some(("format", "" | "text")) => json = false,
            Some(("format", other)) => {
                return Err(invalid(FLAG, value, format!("unknown format `{other}`: known are text and json")));
            }
            Some((key, _)) => return Err(invalid(FLAG, value, format!("unknown key `{key}`: known is format"))),
        }
    }
    let call = Call { check: false, json };
    match name {
        "build" => Ok(None),
        "check" | "lint" => Ok(Some(("frontend.lint", Call { check: true, ..call }))),
        "outline" => Ok(Some(("frontend.outline", call))),
        "targets" => Ok(Some(("frontend.targets", call))),
        "subrequests.describe" => Ok(Some(("frontend.subrequests.describe", call))),
        other => {
            Err(invalid(FLAG, value, format!("no call named `{other}`: known are build, check, outline and targets")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_dockers() {
        let asked = |value: &str| call(value).expect(value);
        assert_eq!(asked("build"), None);
        assert_eq!(asked("check"), Some(("frontend.lint", Call { check: true, json: false })));
        assert_eq!(asked("lint,format=json"), Some(("frontend.lint", Call { check: true, json: true })));
        assert_eq!(asked("outline"), Some(("frontend.outline", Call::default())));
        assert_eq!(asked("format=json,targets"), Some(("frontend.targets", Call { check: false, json: true })));
        for wrong in ["", "outlines", "check,format=xml", "check,colour=red"] {
            assert!(call(wrong).is_err(), "{wrong}");
        }
    }
}
