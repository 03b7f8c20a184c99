//! Which devices a build may have: those that its client allows by `device` or `device=NAME[,alias=NAME]`, and those that
//! need no right.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base::{Digest, Fault};
use llb::pb;

use super::{Devices, Found};
use crate::request::Entitlement;

/// What a build may have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rights {
    all: bool,
    /// Names, and what they mean where that is something else.
    named: BTreeMap<String, Option<String>>,
}

impl Rights {
    pub(crate) fn of(entitlements: &[Entitlement]) -> Rights {
        let mut rights = Rights::default();
        for entitlement in entitlements {
            match entitlement {
                Entitlement::Device(None) => rights.all = true,
                Entitlement::Device(Some(text)) => {
                    let mut fields = text.split(',');
                    let name = fields.next().unwrap_or_default().to_owned();
                    match fields.filter_map(|field| field.strip_prefix("alias=")).next_back() {
                        Some(alias) if !alias.is_empty() => rights.named.insert(alias.to_owned(), Some(name)),
                        _ => rights.named.insert(name, None),
                    };
                }
                Entitlement::NetworkHost | Entitlement::SecurityInsecure => {}
            }
        }
        rights
    }
}

impl Devices {
    /// Refuses steps with devices that the build may not have. The others ask for what they get by its full name then: that is
    /// what they are remembered by.
    pub(crate) fn grant<'a>(
        &self,
        graph: &'a llb::Graph,
        rights: &Rights,
    ) -> Result<Cow<'a, llb::Graph>, (Digest, Fault)> {
        let asks = |vertex: &llb::Vertex| matches!(&vertex.op.op, Some(pb::op::Op::Exec(exec)) if !exec.cdi_devices.is_empty());
        if rights.all || !graph.vertices().iter().any(asks) {
            return Ok(Cow::Borrowed(graph));
        }
        let found = self.read();
        let mut graph = graph.clone();
        for (digest, exec) in graph.steps_mut().filter(|(_, exec)| !exec.cdi_devices.is_empty()) {
            exec.cdi_devices = found.granted(&exec.cdi_devices, rights).map_err(|fault| (digest, fault))?;
        }
        Ok(Cow::Owned(graph))
    }
}

impl Found {
    fn granted(&self, wanted: &[pb::CdiDevice], rights: &Rights) -> Result<Vec<pb::CdiDevice>, Fault> {
        let (mut granted, mut others) = (Vec::new(), Vec::new());
        for device in wanted {
            match rights.named.get(&device.name) {
                Some(Some(meant)) => granted.push(pb::CdiDevice { name: meant.clone(), optional: device.optional }),
                _ => others.push(device.clone()),
            }
        }
        let others = self.find(&others)?;
        let mut allowed = Vec::new();
        for name in rights.named.iter().filter(|(_, meant)| meant.is_none()).map(|(name, _)| name) {
            let named = self.resolve(name);
            if named.is_empty() && !others.is_empty() {
                return Err(self.is_missing(name));
            }
            allowed.extend(named);
        }
        let is_forbidden = |name: &&String| !allowed.contains(name) && !self.is_auto_allowed(name);
        let forbidden: Vec<&str> = others.iter().filter(is_forbidden).map(String::as_str).collect();
        let text = match &forbidden[..] {
            [] => {
                granted.extend(others.into_iter().map(|name| pb::CdiDevice { name, optional: false }));
                return Ok(granted);
            }
            [one] => format!("device {one} is requested by the build but not allowed"),
            many => format!("devices {} are requested by the build but not allowed", many.join(", ")),
        };
        let flags: Vec<_> = forbidden.iter().map(|name| format!("`--allow device={name}`")).collect();
        Err(Fault::user(text).hint(format!("allow it with {}", flags.join(" "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let text = "cdiVersion: 0.6.0\nkind: v.com/x\ndevices:\n\
                    - {name: a, containerEdits: {env: [A=1]}}\n- {name: b, containerEdits: {env: [B=1]}}\n\
                    - {name: c, annotations: {org.mobyproject.buildkit.device.autoallow: true}, containerEdits: {env: [C=1]}}\n";
        let dir = tempfile::tempdir().expect("scratch");
        std::fs::write(dir.path().join("x.yaml"), text).expect("scratch");
        Devices::new(&config::Cdi { spec_dirs: vec![dir.path().to_owned()], ..config::Cdi::default() }).read()
    }

    #[test]
    fn a_build_has_what_it_may_have() {
        for (rights, wanted, granted) in [
            (vec![], vec!["v.com/x=c"], Ok(vec!["v.com/x=c"])),
            (vec![], vec!["?v.com/y=c"], Ok(vec![])),
            (vec![], vec!["v.com/y=c"], Err("required device \"v.com/y=c\" is not registered")),
            (vec![], vec!["v.com/x=a", "v.com/x=c"], Err("device v.com/x=a is requested by the build but not allowed")),
            (vec![], vec!["v.com/x=*"], Err("devices v.com/x=a, v.com/x=b are requested by the build but not allowed")),
            (vec!["v.com/x=a"], vec!["?v.com/x", "v.com/x=c"], Ok(vec!["v.com/x=a", "v.com/x=c"])),
            (vec!["v.com/x=*"], vec!["v.com/x=*"], Ok(vec!["v.com/x=a", "v.com/x=b", "v.com/x=c"])),
            // Of a kind alone it is the first one, upstream, too.
            (vec!["v.com/x"], vec!["v.com/x=b"], Err("device v.com/x=b is requested by the build but not allowed")),
            (vec!["v.com/x=b,alias=gpu"], vec!["gpu", "v.com/x=c"], Ok(vec!["v.com/x=b", "v.com/x=c"])),
            (
                vec!["v.com/x=b,alias=gpu"],
                vec!["v.com/x=b"],
                Err("device v.com/x=b is requested by the build but not allowed"),
            ),
            (vec!["v.com/y"], vec!["v.com/x=c"], Err("required device \"v.com/y\" is not registered")),
        ] {
            let rights: Vec<_> = rights.into_iter().map(|name| Entitlement::Device(Some(name.to_owned()))).collect();
            let wanted: Vec<_> = wanted
                .into_iter()
                .map(|name| pb::CdiDevice {
                    name: name.trim_start_matches('?').to_owned(),
                    optional: name.starts_with('?'),
                })
                .collect();
            let result = found().granted(&wanted, &Rights::of(&rights));
            let result = result.map(|devices| devices.into_iter().map(|device| device.name).collect::<Vec<_>>());
            match granted {
                Ok(granted) => assert_eq!(result.expect("granted"), granted, "{rights:?} {wanted:?}"),
                Err(text) => assert_eq!(result.expect_err("refused").cause(), text, "{rights:?} {wanted:?}"),
            }
        }
    }
}
