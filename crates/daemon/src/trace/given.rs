//! What OpenTelemetry's variables say of the program that makes spans, and of which traces go to a collector.

use std::collections::BTreeMap;

use proto::otlp::{KeyValue, Resource};

use super::export::unescaped;

const NAME: &str = "service.name";

/// What is given.
#[derive(Default)]
pub(crate) struct Given {
    /// Of the program, without what we know ourselves.
    attributes: BTreeMap<String, String>,
    sampler: Sampler,
}

/// Which traces go to a collector.
#[derive(Default)]
struct Sampler {
    /// Where somebody called us, that decides who did.
    by_parent: bool,
    by_id: ById,
}

#[derive(Default)]
enum ById {
    #[default]
    All,
    None,
    /// Those whose ids, as numbers of 63 bits, are below this: the same ones everywhere.
    Below(u64),
}

impl Given {
    /// Reads the variables. What is wrong with them is logged.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Given {
        let mut attributes = BTreeMap::new();
        let text = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some((name, value)) => _ = attributes.insert(name.trim().to_owned(), unescaped(value.trim())),
                None => tracing::warn!("OTEL_RESOURCE_ATTRIBUTES: `{pair}` is no name=value and is ignored"),
            }
        }
        attributes.extend(variable("OTEL_SERVICE_NAME").map(|name| (NAME.to_owned(), name)));
        let sampler = Sampler::of(&variable).unwrap_or_else(|why| {
            tracing::warn!("{why}: traces are handed over as their callers say");
            Sampler { by_parent: true, by_id: ById::All }
        });
        Given { attributes, sampler }
    }

    /// What is said of a program.
    pub(super) fn resource(&self, program: &str) -> Resource {
        let ours = [
            (NAME, program),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", "hullworks"),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        let mut all: BTreeMap<&str, &str> = ours.into();
        // Whose spans they are may be said, who makes them is so.
        let given = self.attributes.iter().filter(|(name, _)| !name.starts_with("telemetry.sdk."));
        all.extend(given.map(|(name, value)| (&name[..], &value[..])));
        Resource { attributes: all.into_iter().map(|(name, value)| KeyValue::text(name, value)).collect() }
    }

    /// Whether a trace goes to a collector; `parent` is what whoever called us decided.
    pub(super) fn samples(&self, trace: &[u8; 16], parent: Option<bool>) -> bool {
        match (parent, &self.sampler.by_id) {
            (Some(decided), _) if self.sampler.by_parent => decided,
            (_, ById::All) => true,
            (_, ById::None) => false,
            (_, ById::Below(bound)) => {
                let [.., a, b, c, d, e, f, g, h] = *trace;
                u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < *bound
            }
        }
    }
}

impl Sampler {
    fn of(variable: &impl Fn(&str) -> Option<String>) -> Result<Sampler, String> {
        const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
        let name = variable("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
        let ratio = || match variable(ARG).as_deref().map(str::trim) {
            None => Ok(ById::All),
            Some(text) => match text.parse::<f64>() {
                Ok(ratio) if ratio >= 1.0 => Ok(ById::All),
                Ok(ratio) if ratio >= 0.0 => Ok(ById::Below((ratio * (1_u64 << 63) as f64) as u64)),
                _ => Err(format!("{ARG}={text} is no number from 0 to 1")),
            },
        };
        let plain = name.strip_prefix("parentbased_");
        let by_id = match plain.unwrap_or(&name) {
            "always_on" => ById::All,
            "always_off" => ById::None,
            "traceidratio" => ratio()?,
            _ => return Err(format!("OTEL_TRACES_SAMPLER={name} is not known")),
        };
        Ok(Sampler { by_parent: plain.is_some(), by_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(variables: &[(&str, &str)]) -> Given {
        Given::of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_program_is_described() {
        let shown = |variables: &[(&str, &str)]| {
            let attributes = given(variables).resource("p").attributes.into_iter();
            let text = |pair: KeyValue| match pair.value.and_then(|value| value.value) {
                Some(proto::otlp::Value::Text(value)) => format!("{}={value}", pair.key),
                other => panic!("{other:?}"),
            };
            let all: Vec<String> = attributes.map(text).filter(|text| !text.contains("sdk.version")).collect();
            all.join(" ")
        };
        let sdk = "telemetry.sdk.language=rust telemetry.sdk.name=hullworks";
        assert_eq!(shown(&[]), format!("service.name=p {sdk}"));
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "a = b%2Cc,nonsense,service.name=s,telemetry.sdk.name=x");
        assert_eq!(shown(&[attributes]), format!("a=b,c service.name=s {sdk}"));
        assert_eq!(shown(&[attributes, ("OTEL_SERVICE_NAME", "n")]), format!("a=b,c service.name=n {sdk}"));
    }

    #[test]
    fn samplers() {
        let [low, high] = [[0; 16], [255; 16]];
        // Without a caller, of two ids; with one that does not, and one that does.
        let decided = |name: &str, arg: &str| {
            let given = given(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
            let asked = [(low, None), (high, None), (low, Some(false)), (high, Some(true))];
            asked.map(|(id, parent)| given.samples(&id, parent))
        };
        assert_eq!(decided("always_on", ""), [true; 4]);
        assert_eq!(decided("always_off", ""), [false; 4]);
        assert_eq!(decided("traceidratio", "0.5"), [true, false, true, false]);
        assert_eq!(decided("traceidratio", "1"), [true; 4]);
        assert_eq!(decided("traceidratio", "0"), [false; 4]);
        assert_eq!(decided("parentbased_always_on", ""), [true, true, false, true]);
        assert_eq!(decided("parentbased_always_off", ""), [false, false, false, true]);
        assert_eq!(decided("parentbased_traceidratio", "0.5"), [true, false, false, true]);
        for wrong in [("traceidratio", "much"), ("mine", "")] {
            assert_eq!(decided(wrong.0, wrong.1), [true, true, false, true], "{wrong:?}");
        }
    }
}
