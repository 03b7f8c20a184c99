//! What clients ask of the engine, and what it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base::Fault;
use base::progress::Sink;
use session::SharedSession;
use store::BlobHold;
use tokio_util::sync::CancellationToken;

/// One build.
pub struct SolveRequest {
    /// What the client calls it: for the log, which has as much of it as is good for people.
    pub reference: String,
    /// What makes the LLB.
    pub frontend: Frontend,
    /// What happens with the result; several run one after another. None: the build is only run.
    pub exports: Vec<ExportRequest>,
    /// Whether the client is asked for more of them when the result is there.
    pub late_exports: bool,
    /// `--import-cache`.
    pub cache_imports: Vec<CacheOptions>,
    /// `--export-cache`.
    pub cache_exports: Vec<CacheOptions>,
    /// `--allow`.
    pub entitlements: Vec<Entitlement>,
    /// Which sources may be used, and which in the place of others.
    pub source_policies: Vec<llb::policy::Policy>,
    /// The client.
    pub session: SharedSession,
    /// Where progress goes.
    pub progress: Arc<dyn Sink>,
    /// Ends the build early.
    pub cancel: CancellationToken,
}

/// What a build begins with.
pub struct Begin {
    /// What the client calls it: for the log, which has as much of it as is good for people.
    pub reference: String,
    /// The client.
    pub session: SharedSession,
    /// Where progress goes.
    pub progress: Arc<dyn Sink>,
    /// Ends the build early.
    pub cancel: CancellationToken,
    /// Rights that it asks for.
    pub entitlements: Vec<Entitlement>,
    /// Which sources may be used, and which in the place of others.
    pub source_policies: Vec<llb::policy::Policy>,
}

/// What makes the LLB.
#[derive(Clone, Debug)]
pub enum Frontend {
    /// A frontend by name (`dockerfile.v0`, `gateway.v0`) with its `--opt` values.
    Named {
        /// Its name.
        name: String,
        /// `--opt key=value`.
        options: BTreeMap<String, String>,
        /// What the client made for it, by names that the options use.
        inputs: Inputs,
    },
    /// What the client made itself.
    Llb {
        /// A marshalled `pb.Definition`.
        definition: Vec<u8>,
        /// `--opt key=value`: what no frontend reads and the builder does.
        options: BTreeMap<String, String>,
    },
}

impl Default for Frontend {
    fn default() -> Frontend {
        Frontend::Llb { definition: Vec::new(), options: BTreeMap::new() }
    }
}

impl Frontend {
    /// `gateway.v0` with a built-in frontend as its source, or an image that has the same, is that one, unless a context
    /// stands for the source.
    pub(crate) fn built_in(self) -> Frontend {
        const BUILT_IN: &str = "dockerfile.v0";
        let is_it = |source: &str| source == BUILT_IN || ::dockerfile::is_built_in_image(source);
        let is_context = |key: &String| {
            let name = key.strip_prefix("context:").and_then(|name| name.split("::").next());
            name.is_some_and(is_it)
        };
        match self {
            Frontend::Named { name, mut options, inputs }
                if name == "gateway.v0"
                    && options.get("source").is_some_and(|source| is_it(source))
                    && !options.keys().any(is_context) =>
            {
                options.remove("source");
                Frontend::Named { name: BUILT_IN.to_owned(), options, inputs }
            }
            other => other,
        }
    }
}

/// Marshalled `pb.Definition`s by name.
pub type Inputs = BTreeMap<String, Vec<u8>>;

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRequest {
    /// `image`, `oci`, `docker`, `tar`, `local`.
    pub kind: String,
    /// Its attributes, such as `name`, `push`, `compression`. Where it goes is the session's business:
    /// `session.output(i)` is asked for the i-th export.
    pub attrs: BTreeMap<String, String>,
}

/// Which attribute of an output says that no time in it is later.
const EPOCH: &str = "source-date-epoch";

impl ExportRequest {
    /// The build argument `SOURCE_DATE_EPOCH` holds for outputs whose attributes say nothing else. An empty one says that no
    /// time is set, whatever the result says.
    pub(crate) fn take_epoch(&mut self, options: &BTreeMap<String, String>) {
        let given = options.get("build-arg:SOURCE_DATE_EPOCH");
        // Not a number of seconds: the frontend knows other forms, and refuses what is none.
        let is_time = |text: &&String| text.is_empty() || text.parse::<i64>().is_ok_and(|seconds| seconds >= 0);
        if let Some(text) = given.filter(is_time) {
            self.attrs.entry(EPOCH.to_owned()).or_insert_with(|| text.clone());
        }
    }

    /// The same for what the result says itself.
    pub(crate) fn take_result_epoch(&mut self, seconds: Option<i64>) {
        if let Some(seconds) = seconds.filter(|seconds| *seconds >= 0) {
            self.attrs.entry(EPOCH.to_owned()).or_insert_with(|| seconds.to_string());
        }
    }
}

/// What is to become of a result.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    /// What the client asked for with the build.
    pub asked: Vec<ExportRequest>,
    /// The client is asked for more when the result is there, and told what all came to
    /// ([`Session::late_exports`](session::Session::late_exports)): by these names it can look into the trees.
    pub late: Option<Vec<String>>,
}

/// One `--import-cache` or `--export-cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// `registry`, `local`, `inline`, ..
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A right that a build asks for and the daemon must allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
    /// `device` or `device=NAME[,alias=NAME]`
    Device(Option<String>),
}

/// What a build answers.
#[derive(Clone, Debug, Default)]
pub struct SolveResponse {
    /// BuildKit's exporter response: `containerimage.digest`, `image.name`, ..
    pub exporter_response: BTreeMap<String, String>,
    /// What each export made, where that is an image: its descriptor, in base64.
    pub descriptors: Vec<Option<String>>,
    /// What describes those images: it stays in the store as long as this lives.
    pub documents: Vec<BlobHold>,
    /// The frontend's answer where it was asked something (`requestid`) in the place of a build: `result.txt`, ..
    pub answer: BTreeMap<String, Vec<u8>>,
    /// What the frontend said of its result: `containerimage.config`, `refs.platforms`, ..
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// Refuses options that ask for attestations, whoever makes the LLB: an image without them must not be taken for one with. Where
/// there are no outputs, nothing is lost.
pub fn check_attestations(options: &BTreeMap<String, String>) -> Result<(), Fault> {
    let mut asked = options.iter().filter(|(name, _)| name.starts_with("attest:"));
    asked.try_for_each(|(name, value)| ::dockerfile::check_attestation(name, value)).map_err(|e| e.into_fault(None))
}

/// Whether a frontend's options ask it something in the place of a build.
pub fn is_question(options: &BTreeMap<String, String>) -> bool {
    options.get("requestid").is_some_and(|request| !request.is_empty())
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entitlement::NetworkHost => f.write_str("network.host"),
            Entitlement::SecurityInsecure => f.write_str("security.insecure"),
            Entitlement::Device(None) => f.write_str("device"),
            Entitlement::Device(Some(name)) => write!(f, "device={name}"),
        }
    }
}

impl FromStr for Entitlement {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "network.host" => Ok(Entitlement::NetworkHost),
            "security.insecure" => Ok(Entitlement::SecurityInsecure),
            "device" => Ok(Entitlement::Device(None)),
            _ => match text.strip_prefix("device=") {
                Some("") => Ok(Entitlement::Device(None)),
                Some(device) => {
                    for option in device.split(',').skip(1) {
                        match option.split_once('=') {
                            Some(("alias", _)) => {}
                            Some((key, _)) => return Err(Fault::user(format!("unknown device config key \"{key}\""))),
                            None => return Err(Fault::user(format!("invalid device config \"{option}\""))),
                        }
                    }
                    Ok(Entitlement::Device(Some(device.to_owned())))
                }
                None => Err(Fault::user(format!(
                    "no entitlement named `{text}`: there are network.host, security.insecure and device"
                ))),
            },
        }
    }
}
