//! Golden folders: `cases/<name>/Dockerfile` with `options.txt` and the files of the session beside it.
//!
//! `upstream.txt` holds facts that BuildKit's own frontend computed for the same input: vertex digests, names,
//! capabilities, lines and image configurations, or the lines that it marks in an error. They are compared and never
//! renewed here. `llb.txt` and `error.txt` are ours, for people to read in a diff; `BLESS=1` renews them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use base::{Digest, Fault, Kind, Platform};
use dockerfile::{Ask, ImageRequest, Outcome, ReadRequest, Request, ResolvedImage, Warning};
use llb::pb;

/// The same answers that the program behind `upstream.txt` got.
struct Fake {
    root: PathBuf,
    case: PathBuf,
    warnings: RefCell<Vec<Warning>>,
}

impl Ask for Fake {
    fn resolve_images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, Fault>> {
        let index = fs::read_to_string(self.root.join("images/index.txt")).expect("an index");
        let resolve = |request: &ImageRequest| {
            let line = index.lines().find_map(|line| line.strip_prefix(&format!("{} ", request.reference)));
            let file = line.ok_or_else(|| Fault::new(Kind::Remote, "registry answered 404"))?;
            let config = fs::read_to_string(self.root.join("images").join(file)).expect("a configuration");
            Ok(ResolvedImage {
                reference: request.reference.clone(),
                digest: Some(Digest::of(&request.reference)),
                config: config.replace("@ARCH@", &request.platform.architecture).into_bytes(),
                instead: None,
            })
        };
        requests.iter().map(resolve).collect()
    }

    fn read_files(&self, request: &ReadRequest) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let dir = match &request.local {
            Some(local) if local.name == "dockerfile" => ".",
            Some(local) => &local.name,
            None => "remote",
        };
        Ok(request.paths.iter().map(|path| fs::read(self.case.join(dir).join(path)).ok()).collect())
    }

    fn ignored(&self, patterns: &[String], path: &str) -> bool {
        files::pattern::Matcher::new(patterns).expect("patterns").matches(path).expect("patterns")
    }

    fn warn(&self, warning: &Warning) {
        self.warnings.borrow_mut().push(warning.clone());
    }
}

fn options(case: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(case.join("options.txt")).unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').expect("name=value");
        (name.to_owned(), value.to_owned())
    };
    text.lines().map(pair).collect()
}

fn build(root: &Path, case: &Path) -> Result<Outcome, Fault> {
    checked(root, case).0
}

/// The outcome, and the warnings on the way there.
fn checked(root: &Path, case: &Path) -> (Result<Outcome, Fault>, Vec<Warning>) {
    let fake = Fake { root: root.to_owned(), case: case.to_owned(), warnings: RefCell::default() };
    let options = options(case);
    let build_platforms = [Platform::new("linux", "amd64", ""), Platform::new("linux", "arm64", "")];
    let request = Request { options: &options, session: "session", build_platforms: &build_platforms };
    (dockerfile::build(&request, &fake), fake.warnings.into_inner())
}

/// What a definition says apart from the ops themselves.
fn facts(definition: &pb::Definition) -> String {
    let mut out = String::new();
    for bytes in &definition.def {
        let digest = Digest::of(bytes).to_string();
        writeln!(out, "{digest}").expect("memory");
        let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
        for (key, value) in &metadata.description {
            writeln!(out, "  {key}: {}", go_json(value)).expect("memory");
        }
        let caps: Vec<&str> = metadata.caps.keys().map(String::as_str).collect();
        writeln!(out, "  caps: {}", caps.join(" ")).expect("memory");
        if metadata.ignore_cache {
            out.push_str("  ignore-cache\n");
        }
        if let Some(group) = &metadata.progress_group {
            writeln!(out, "  group: {} weak={}", go_json(&group.name), group.weak).expect("memory");
        }
        let locations = definition.source.as_ref().and_then(|source| source.locations.get(&digest));
        for location in locations.iter().flat_map(|locations| &locations.locations) {
            out.push_str("  lines:");
            for range in &location.ranges {
                let line = |position: Option<pb::Position>| position.map_or(0, |position| position.line);
                write!(out, " {}-{}", line(range.start), line(range.end)).expect("memory");
            }
            out.push('\n');
        }
    }
    out
}

fn go_json(text: &str) -> String {
    let json = serde_json::to_string(text).expect("text");
    let escape = |c: char| match c {
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    json.chars().map(escape).collect()
}

/// Facts as `upstream.txt` has them, our text form of the LLB, and the error.
fn outputs(root: &Path, case: &Path) -> (String, String, String) {
    match build(root, case) {
        Ok(Outcome::Built(built)) => {
            let (mut upstream, mut text) = (String::new(), String::new());
            for result in &built.platforms {
                write!(upstream, "platform {}\n{}", result.id, facts(&result.definition)).expect("memory");
                writeln!(upstream, "config {}", String::from_utf8_lossy(&result.config)).expect("memory");
                if let Some(base) = &result.base_config {
                    writeln!(upstream, "base {}", String::from_utf8_lossy(base)).expect("memory");
                }
                if let Some(epoch) = result.epoch {
                    writeln!(upstream, "epoch {epoch}").expect("memory");
                }
                let graph = llb::Graph::new(result.definition.clone(), llb::Limits::default()).expect("valid LLB");
                write!(text, "platform {}\n\n{}", result.id, llb::text::describe(&graph)).expect("memory");
            }
            (upstream, text, String::new())
        }
        Ok(Outcome::Answered(answer)) => {
            let text = answer.get("result.txt").map(|text| String::from_utf8_lossy(text).into_owned());
            (String::new(), text.unwrap_or_default(), String::new())
        }
        Ok(Outcome::Gateway(gateway)) => (String::new(), format!("gateway {}\n", gateway.cmdline), String::new()),
        Err(fault) => {
            let mut error = format!("error: {fault}\n");
            if let Some(hint) = fault.get_hint() {
                writeln!(error, "hint: {hint}").expect("memory");
            }
            let mut upstream = String::from("error");
            for (_, spans) in fault.places() {
                for span in spans {
                    writeln!(error, "lines {}-{}", span.start.0, span.end.0).expect("memory");
                    (span.start.0..=span.end.0).for_each(|line| write!(upstream, " {line}").expect("memory"));
                }
            }
            (format!("{upstream}\n"), String::new(), error)
        }
    }
}

/// Compares with a golden file, or renews it. An empty text has no file.
fn golden(path: &Path, actual: &str, failures: &mut Vec<String>) {
    if std::env::var_os("BLESS").is_some() {
        if actual.is_empty() {
            _ = fs::remove_file(path);
        } else {
            fs::write(path, actual).expect("writable");
        }
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected != actual {
        failures.push(format!("{} differs:\n{}", path.display(), first_difference(&expected, actual)));
    }
}

/// Whether the facts hold. Upstream gives images that mounts name no line; we do.
fn same_facts(expected: &str, actual: &str) -> bool {
    let same = |(a, b): (&str, &str)| a == b || a == "  lines:" && b.starts_with(a);
    expected.lines().count() == actual.lines().count() && expected.lines().zip(actual.lines()).all(same)
}

fn first_difference(expected: &str, actual: &str) -> String {
    let mut pairs = expected.lines().chain(["(end)"]).zip(actual.lines().chain(["(end)"])).enumerate();
    match pairs.find(|(_, (a, b))| a != b) {
        Some((line, (a, b))) => format!("line {}\n  expected {a}\n  actual   {b}", line + 1),
        None => "in length".to_owned(),
    }
}

#[test]
fn llb_and_configurations_equal_upstreams() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root.join("cases")).expect("cases").map(|entry| entry.expect("an entry").path()).collect();
    cases.sort();
    assert!(cases.len() > 60, "only {} cases", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        let (upstream, text, error) = outputs(&root, case);
        let path = case.join("upstream.txt");
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if !same_facts(&expected, &upstream) {
            let shown = if error.is_empty() { String::new() } else { format!("\n{error}") };
            let difference = first_difference(&expected, &upstream);
            failures.push(format!("{} differs: {difference}{shown}", path.display()));
        }
        golden(&case.join("llb.txt"), &text, &mut failures);
        golden(&case.join("error.txt"), &error, &mut failures);
    }
    assert!(failures.is_empty(), "{} failures\n\n{}", failures.len(), failures.join("\n\n"));
}

/// `mistakes.txt` holds bad Dockerfiles, each followed by what is said about it. `BLESS=1` renews what is said.
#[test]
fn mistakes_are_explained_and_their_lines_marked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let scratch = tempfile::tempdir().expect("a directory");
    let file = root.join("mistakes.txt");
    let text = fs::read_to_string(&file).expect("mistakes");
    let mut renewed = String::new();
    for block in text.split("=== ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a name");
        let dockerfile = rest.split_once("---\n").map_or(rest, |(dockerfile, _)| dockerfile);
        fs::write(scratch.path().join("Dockerfile"), dockerfile).expect("writable");
        let (_, _, error) = outputs(&root, scratch.path());
        let error = if error.is_empty() { "fine\n".to_owned() } else { error };
        assert!(error.lines().all(|line| !line.ends_with('.')), "{name}: {error}");
        write!(renewed, "=== {name}\n{dockerfile}---\n{error}").expect("memory");
    }
    let mut failures = Vec::new();
    golden(&file, &renewed, &mut failures);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// `checks.txt` holds Dockerfiles with options and ignore files, and what upstream's checks said about them: lines,
/// page and text of each warning, the error that warnings become, or that the settings are refused.
///
/// Never renewed here. Said twice counts once, and the order does not matter: upstream's changes from run to run.
#[test]
fn checks_say_what_upstreams_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let text = fs::read_to_string(root.join("checks.txt")).expect("checks");
    let mut failures = Vec::new();
    let mut count = 0;
    for block in text.split("=== ").skip(1) {
        count += 1;
        let mut parts = block.split("---\n");
        let mut part = || parts.next().expect("three parts");
        let ((head, dockerfile), expected) = ((part(), part()), part());
        let (name, head) = head.split_once('\n').expect("a name");
        let (mut options, mut ignore) = (String::new(), String::new());
        for line in head.lines() {
            match line.split_once(' ').expect("a word and a value") {
                ("opt", option) => writeln!(options, "{option}").expect("memory"),
                ("ignore", pattern) => writeln!(ignore, "{pattern}").expect("memory"),
                (other, _) => panic!("{name}: {other}"),
            }
        }
        let case = tempfile::tempdir().expect("a directory");
        fs::write(case.path().join("Dockerfile"), dockerfile).expect("writable");
        fs::write(case.path().join("options.txt"), options).expect("writable");
        if !ignore.is_empty() {
            fs::create_dir(case.path().join("context")).expect("writable");
            fs::write(case.path().join("context/.dockerignore"), ignore).expect("writable");
        }
        let (outcome, warnings) = checked(&root, case.path());
        let mut said: Vec<String> = warnings.iter().map(said).collect();
        if let Err(fault) = outcome {
            let text = fault.to_string();
            if text.starts_with("lint violation") {
                said.push(format!("error: {text}"));
            } else if text.contains("`check`") || text.contains("BUILDKIT_DOCKERFILE_CHECK") {
                assert!(fault.get_hint().is_some(), "{name}: {text}");
                said.push("refused".to_owned());
            }
        }
        let mut expected: Vec<&str> = expected.lines().collect();
        expected.sort_unstable();
        said.sort_unstable();
        if expected != said {
            failures.push(format!("{name}\n  expected {expected:#?}\n  actual {said:#?}"));
        }
    }
    assert!(count > 60, "only {count} cases");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn said(warning: &Warning) -> String {
    let lines: Vec<String> = warning.spans.iter().map(|span| span.start.0.to_string()).collect();
    format!("{} {} {}", lines.join(","), warning.url.unwrap_or("-"), warning.short())
}
