//! Displays are driven by recorded events and a clock of the test.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base::progress::{Log, ProgressGroup, Status, Stream, Vertex, Warning};
use base::{Digest, SourceFile, SourceSpan};
use insta::assert_snapshot;
use proto::Message as _;

use super::*;

/// A time, in milliseconds since the build began.
fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + millis).expect("a time")
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

fn vertex(name: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
    Vertex {
        digest: Digest::of(name),
        inputs: Vec::new(),
        name: name.to_owned(),
        started: started.map(at),
        completed: completed.map(at),
        cached: false,
        error: None,
        group: None,
    }
}

fn status(name: &str, id: &str, (current, total): (u64, u64), now: i64, started: i64, completed: Option<i64>) -> Event {
    Event::Status(Status {
        vertex: Digest::of(name),
        id: id.to_owned(),
        name: String::new(),
        current,
        total,
        timestamp: at(now),
        started: Some(at(started)),
        completed: completed.map(at),
    })
}

fn log(name: &str, now: i64, text: &str) -> Event {
    Event::Log(Log {
        vertex: Digest::of(name),
        stream: Stream::Stdout,
        timestamp: at(now),
        bytes: text.as_bytes().to_vec(),
    })
}

const LOAD: &str = "[internal] load build definition from Dockerfile";
const MAKE: &str = "[build 2/3] RUN make";
const TEST: &str = "[test 2/2] RUN make test";
const COPY: &str = "[build 1/3] COPY . .";

/// A build: time of arrival and event.
fn recorded() -> Vec<(i64, Event)> {
    let failed = Vertex { error: Some("exit code: 2".to_owned()), ..vertex(TEST, Some(200), Some(12_600)) };
    let cancelled = Vertex { error: Some("context canceled".to_owned()), ..vertex(MAKE, Some(150), Some(12_700)) };
    vec![
        (0, Event::Vertex(vertex(LOAD, None, None))),
        (0, Event::Vertex(vertex(COPY, None, None))),
        (0, Event::Vertex(vertex(MAKE, None, None))),
        (0, Event::Vertex(vertex(TEST, None, None))),
        (10, Event::Vertex(vertex(LOAD, Some(10), None))),
        (20, status(LOAD, "transferring dockerfile:", (0, 0), 20, 20, None)),
        (30, status(LOAD, "transferring dockerfile:", (32, 0), 30, 20, Some(30))),
        (40, Event::Vertex(vertex(LOAD, Some(10), Some(110)))),
        (120, Event::Vertex(Vertex { cached: true, ..vertex(COPY, Some(120), Some(120)) })),
        (150, Event::Vertex(vertex(MAKE, Some(150), None))),
        (200, Event::Vertex(vertex(TEST, Some(200), None))),
        (260, log(MAKE, 260, "cc -c main.c\ncc -c par")),
        (400, log(MAKE, 400, "ser.c\n")),
        (500, log(TEST, 500, "ok 1\n")),
        (1000, status(MAKE, "sha256:abc", (1_000_000, 40_000_000), 1000, 900, None)),
        (1200, status(MAKE, "sha256:abc", (1_500_000, 40_000_000), 1200, 900, None)),
        (1400, status(MAKE, "sha256:abc", (20_000_000, 40_000_000), 1400, 900, None)),
        (9000, log(MAKE, 9000, "still here\n")),
        (11_000, log(MAKE, 11_000, "and here: ")),
        (12_500, log(TEST, 12_500, "not ok 2\nno newline")),
        (12_600, Event::Vertex(failed)),
        (12_700, Event::Vertex(cancelled)),
    ]
}

/// Feeds the events, refreshing in between as the thread would.
fn play(reader: &mut dyn Reader, events: &[(i64, Event)], pace: i64) -> Vec<FailedStep> {
    let mut clock = 0;
    for (time, event) in events {
        while clock < *time {
            clock = (clock + pace).min(*time);
            reader.refresh(at(clock));
        }
        reader.update(std::slice::from_ref(event), at(*time));
    }
    let end = events.last().map_or(0, |(time, _)| *time);
    reader.refresh(at(end));
    reader.finish(at(end + 100))
}

#[test]
fn plain_lines() {
    let out = Shared::default();
    let mut plain = plain::Plain::new(Box::new(out.clone()), &Environment::default());
    let failed = play(&mut plain, &recorded(), 100);
    assert_snapshot!(out.text());
    let [failed] = failed.as_slice() else { panic!("one step failed: {failed:?}") };
    assert_eq!(failed.name, TEST);
    assert_eq!(failed.tail, b"0.300 ok 1\n12.30 not ok 2\n12.30 no newline\n");
}

#[test]
fn plain_warnings_groups_and_repeated_runs() {
    let out = Shared::default();
    let mut plain = plain::Plain::new(Box::new(out.clone()), &Environment::default());
    let group = |weak| Some(ProgressGroup { id: "g".into(), name: "[linux/arm64] base".into(), weak });
    let warning = Warning {
        vertex: Digest::of(LOAD),
        level: 1,
        short: "FromAsCasing: 'as' and 'FROM' keywords' casing do not match".into(),
        detail: Vec::new(),
        url: None,
        file: None,
        spans: Vec::new(),
    };
    let cached =
        |name: &str, weak, run: i64| Vertex { cached: true, group: group(weak), ..vertex(name, Some(run), Some(run)) };
    let events = [
        (0, Event::Vertex(vertex(LOAD, Some(0), None))),
        (10, Event::Warning(warning)),
        (20, Event::Vertex(vertex(LOAD, Some(0), Some(1000)))),
        // Said twice, shown once.
        (25, Event::Vertex(vertex(LOAD, Some(0), Some(1000)))),
        (26, Event::Vertex(vertex(LOAD, None, None))),
        // A weak member alone shows nothing.
        (30, Event::Vertex(cached("resolve", true, 30))),
        (2000, Event::Vertex(cached("pull", false, 2000))),
        // The second run of a vertex adds to the first.
        (3000, Event::Vertex(vertex(MAKE, Some(3000), Some(4000)))),
        (5000, Event::Vertex(vertex(MAKE, Some(5000), Some(5500)))),
    ];
    play(&mut plain, &events, 100);
    assert_snapshot!(out.text(), @r"
    #1 [internal] load build definition from Dockerfile
    #1 WARN: FromAsCasing: 'as' and 'FROM' keywords' casing do not match
    #1 DONE 1.0s

    #2 [linux/arm64] base
    #2 CACHED

    #3 [build 2/3] RUN make
    #3 DONE 1.0s

    #3 [build 2/3] RUN make
    #3 DONE 1.5s
    ");
}

fn warning(vertex: &str, short: &str) -> Event {
    Event::Warning(Warning {
        vertex: Digest::of(vertex),
        level: 1,
        short: short.into(),
        detail: Vec::new(),
        url: None,
        file: None,
        spans: Vec::new(),
    })
}

/// Warnings that come after their step, before it, and for one that never comes.
fn warned() -> Vec<(i64, Event)> {
    vec![
        (0, Event::Vertex(vertex(LOAD, Some(0), Some(10)))),
        (10, warning(MAKE, "before")),
        (10, log(MAKE, 10, "early\n")),
        (600, warning(LOAD, "after")),
        (700, warning("nobody", "of nobody")),
        (700, log("nobody", 700, "lost\n")),
        (1000, Event::Vertex(vertex(MAKE, Some(1000), Some(1100)))),
    ]
}

#[test]
fn no_warning_is_lost_in_lines() {
    let out = Shared::default();
    let mut plain = plain::Plain::new(Box::new(out.clone()), &Environment::default()).with_summary(true);
    play(&mut plain, &warned(), 100);
    assert_snapshot!(out.text(), @r"
    #1 [internal] load build definition from Dockerfile
    #1 DONE 0.0s

    #1 [internal] load build definition from Dockerfile
    #1 WARN: after
    #1 DONE 0.0s

    #2 [build 2/3] RUN make
    #2 WARN: before
    #2 0.000 early
    #2 DONE 0.1s

    #3 messages of no step
    #3 WARN: of nobody
    #3 0.000 lost
    #3 DONE 0.0s

     3 warnings found:
     - before
     - after
     - of nobody
    ");
}

#[test]
fn no_warning_is_lost_in_a_frame() {
    let out = Shared::default();
    let size = || tty::Size { columns: 60, rows: 20 };
    let environment = Environment::with(&[("NO_COLOR", "1")]);
    let mut tty = tty::Tty::new(Box::new(out.clone()), &environment).with_size(size).with_summary(true);
    play(&mut tty, &warned(), 100);
    let mut screen = Screen::new(60);
    screen.write(&out.text());
    assert_snapshot!(screen.text(), @r"
    [+] Building 1.1s (3/3) FINISHED
     => [internal] load build definition from Dockerfile   0.0s
     => WARN: after
     => [build 2/3] RUN make                               0.1s
     => WARN: before
     => messages of no step                                0.0s
     => WARN: of nobody

     3 warnings found:
     - before
     - after
     - of nobody
    ");
}

#[test]
fn long_names_are_cut_on_request() {
    let out = Shared::default();
    let environment = Environment::with(&[("PROGRESS_NO_TRUNC", "0")]);
    let mut plain = plain::Plain::new(Box::new(out.clone()), &environment);
    play(&mut plain, &[(0, Event::Vertex(vertex(&"é".repeat(80), Some(0), Some(0))))], 100);
    assert_eq!(out.text(), format!("#1 {}...\n#1 DONE 0.0s\n", "é".repeat(72)));
}

#[test]
fn raw_json_is_upstreams() {
    let out = Shared::default();
    let mut raw = rawjson::RawJson::new(Box::new(out.clone()));
    let metadata = proto::pb::OpMetadata {
        description: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into_iter().collect(),
        caps: [("cap".to_owned(), true)].into_iter().collect(),
        ..Default::default()
    };
    let definition = proto::pb::Definition {
        def: vec![vec![1]],
        metadata: [("sha256:x".to_owned(), metadata)].into_iter().collect(),
        source: Some(proto::pb::Source {
            locations: [("sha256:x".to_owned(), proto::pb::Locations::default())].into_iter().collect(),
            infos: Vec::new(),
        }),
    };
    let file = Arc::new(SourceFile {
        name: "Dockerfile".into(),
        data: b"FROM a\n".to_vec(),
        language: "Dockerfile".into(),
        definition: definition.encode_to_vec(),
    });
    let Event::Status(plain) = status("v", "s", (0, 7), 5, 1, None) else { panic!("a status") };
    let events = [
        Event::Vertex(Vertex { inputs: vec![Digest::of("i")], ..vertex("v", Some(0), None) }),
        Event::Status(Status { name: "transferring".into(), ..plain.clone() }),
        Event::Status(plain),
        log("v", 6, "hi\n"),
        Event::Warning(Warning {
            vertex: Digest::of("v"),
            level: 1,
            short: "w".into(),
            detail: vec!["d".into()],
            url: Some("https://x".into()),
            file: Some(file),
            spans: vec![SourceSpan::lines(1, 1)],
        }),
    ];
    raw.update(&events, at(10));
    raw.update(&[Event::Vertex(vertex("v", Some(0), Some(1500)))], at(20));
    assert_snapshot!(out.text());
}

#[test]
fn what_is_told_before_a_build_has_the_form_of_the_display() {
    let told = |mode, notice: &Notice| {
        let mut out = Vec::new();
        tell(mode, &mut out, notice);
        String::from_utf8(out).expect("text")
    };
    let (warning, waiting) = (Notice::Warning("w".into()), Notice::Waiting("for it".into()));
    assert_eq!(told(Mode::Tty, &warning), "warning: w\n");
    assert_eq!(told(Mode::Plain, &waiting), "waiting: for it\n");
    let json = |notice| {
        let line = told(Mode::RawJson, notice);
        assert_eq!(line.find('\n'), Some(line.len() - 1), "one line");
        serde_json::from_str::<serde_json::Value>(&line).expect("JSON")
    };
    let (warning, waiting) = (json(&warning), json(&waiting));
    assert_eq!(warning["warnings"][0]["short"], "dw==");
    assert_eq!(warning["warnings"][0]["vertex"], warning["vertexes"][0]["digest"]);
    assert_eq!(waiting["vertexes"][0]["name"], "waiting: for it");
    assert!(waiting["warnings"].is_null() && waiting["vertexes"][0]["completed"].is_string());
}

/// A screen of a few lines that knows what the frame uses: up, return, erase line, erase below, newline.
struct Screen {
    columns: usize,
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    cursor_shown: bool,
}

impl Screen {
    fn new(columns: usize) -> Screen {
        Screen { columns, rows: vec![Vec::new()], row: 0, column: 0, cursor_shown: true }
    }

    fn write(&mut self, text: &str) {
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut parameters = String::new();
                    let end = loop {
                        match chars.next().expect("a whole sequence") {
                            c if c.is_ascii_alphabetic() => break c,
                            c => parameters.push(c),
                        }
                    };
                    self.control(&parameters, end);
                }
                '\n' => {
                    (self.row, self.column) = (self.row + 1, 0);
                    if self.row == self.rows.len() {
                        self.rows.push(Vec::new());
                    }
                }
                '\r' => self.column = 0,
                c => {
                    assert!(self.column < self.columns, "the frame is wider than the terminal");
                    let row = &mut self.rows[self.row];
                    row.resize(row.len().max(self.column + 1), ' ');
                    row[self.column] = c;
                    self.column += 1;
                }
            }
        }
    }

    fn control(&mut self, parameters: &str, end: char) {
        match (parameters, end) {
            (count, 'A') => {
                self.row = self.row.checked_sub(count.parse().expect("a number")).expect("not above the top")
            }
            ("", 'K') => self.rows[self.row].truncate(self.column),
            ("", 'J') => {
                self.rows[self.row].truncate(self.column);
                self.rows.truncate(self.row + 1);
            }
            ("?25l", 'l') | ("?25", 'l') => self.cursor_shown = false,
            ("?25h", 'h') | ("?25", 'h') => self.cursor_shown = true,
            (_, 'm') => {}
            other => panic!("the screen does not know {other:?}"),
        }
    }

    fn text(&self) -> String {
        let line = |row: &Vec<char>| row.iter().collect::<String>().trim_end().to_owned();
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn tty_frames() {
    let out = Shared::default();
    let size = || tty::Size { columns: 60, rows: 20 };
    let mut tty = tty::Tty::new(Box::new(out.clone()), &Environment::default()).with_size(size);
    let mut screen = Screen::new(60);
    let mut shown = String::new();
    let mut drawn = 0;
    let events = recorded();
    for (index, (time, event)) in events.iter().enumerate() {
        tty.update(std::slice::from_ref(event), at(*time));
        tty.refresh(at(*time));
        let text = out.text();
        screen.write(&text[drawn..]);
        drawn = text.len();
        assert!(screen.cursor_shown);
        if [4, 9, 12, 16, 20].contains(&index) {
            shown.push_str(&format!("--- after {time} ms\n{}\n", screen.text()));
        }
    }
    tty.finish(at(13_000));
    screen.write(&out.text()[drawn..]);
    shown.push_str(&format!("--- at the end\n{}", screen.text()));
    assert_snapshot!(shown);
}

#[test]
fn tty_fits_small_terminals() {
    let out = Shared::default();
    let size = || tty::Size { columns: 40, rows: 6 };
    let mut tty = tty::Tty::new(Box::new(out.clone()), &Environment::with(&[("NO_COLOR", "1")])).with_size(size);
    for number in 0..5 {
        let done = (number < 3).then_some(100);
        tty.update(
            &[Event::Vertex(vertex(&format!("[{number}/5] RUN a long command line {number}"), Some(0), done))],
            at(0),
        );
    }
    for number in 3..5 {
        tty.update(&[log(&format!("[{number}/5] RUN a long command line {number}"), 100, "x\ny\nz\n")], at(100));
    }
    tty.refresh(at(200));
    let mut screen = Screen::new(40);
    screen.write(&out.text());
    assert_snapshot!(screen.text(), @r"
    [+] Building 0.2s (3/5)
     => [1/5] RUN a long command line  0.1s
     => [2/5] RUN a long command line  0.1s
     => [3/5] RUN a long command line  0.2s
     => [4/5] RUN a long command line  0.2s
    ");
    assert!(!out.text().contains("\x1b[34m"), "no colour with NO_COLOR");
}

#[test]
fn a_display_shows_everything_before_it_ends() {
    let out = Shared::default();
    let trace = Shared::default();
    let display = Display::start(
        Mode::Plain,
        Box::new(out.clone()),
        Some(Box::new(trace.clone())),
        false,
        &Environment::default(),
    )
    .expect("a thread");
    let sink = display.sink();
    for number in 0..100 {
        sink.emit(Event::Vertex(vertex(&format!("v{number}"), Some(number), Some(number))));
    }
    assert_eq!(display.finish(), []);
    assert_eq!(out.text().matches("DONE").count(), 100);
    assert_eq!(trace.text().matches("\"completed\"").count(), 100);
    // A sink that outlives its display is harmless.
    sink.emit(Event::Vertex(vertex("late", None, None)));
}

#[test]
fn modes() {
    let terminal = Environment { stderr_is_terminal: true, ..Environment::default() };
    let choose = |value: &str, environment: &Environment| Mode::choose(value, environment).ok();
    let pipe = Environment::default();
    assert_eq!(choose("auto", &terminal), Some(Mode::Tty));
    assert_eq!(choose("", &pipe), Some(Mode::Plain));
    assert_eq!(choose("tty", &pipe), Some(Mode::Plain));
    assert_eq!(choose("none", &terminal), Some(Mode::Quiet));
    assert_eq!(choose("rawjson", &terminal), Some(Mode::RawJson));
    assert_eq!(choose("fancy", &pipe), None);
    let foo = Environment::with(&[("BUILDKIT_PROGRESS", "foo")]);
    let said = Mode::choose("auto", &foo).expect_err("no mode").to_string();
    assert!(said.starts_with("invalid value `foo` for BUILDKIT_PROGRESS: "), "{said}");
    let said = Mode::choose("bar", &foo).expect_err("no mode").to_string();
    assert!(said.starts_with("invalid value `bar` for --progress: "), "{said}");
    let asked = Environment::with(&[("BUILDKIT_PROGRESS", "rawjson")]);
    assert_eq!(choose("auto", &asked), Some(Mode::RawJson));
    assert_eq!(choose("plain", &asked), Some(Mode::Plain));
}

#[test]
fn the_last_lines_of_a_step_are_bounded_and_right() {
    let failed = Vertex { error: Some("exit code: 2".to_owned()), ..vertex(MAKE, Some(0), Some(9000)) };
    let mut events = vec![(0, Event::Vertex(vertex(MAKE, Some(0), None)))];
    // A piece with more lines than are kept goes on in the line before it.
    events.push((100, log(MAKE, 100, "begun ")));
    events.push((200, log(MAKE, 200, &(0..12).map(|n| format!("{n}\n")).collect::<String>())));
    events.push((300, log(MAKE, 300, "open ")));
    events.push((400, log(MAKE, 400, "line\nlong ")));
    for at in 0..100 {
        events.push((500 + at, log(MAKE, 500 + at, &"x".repeat(9000))));
    }
    events.push((700, log(MAKE, 700, "end")));
    events.push((9000, Event::Vertex(failed)));
    let mut plain = plain::Plain::new(Box::new(Shared::default()), &Environment::default());
    let steps = play(&mut plain, &events, 100);
    let [step] = &steps[..] else { panic!("{steps:?}") };
    let tail = String::from_utf8(step.tail.clone()).expect("text");
    let lines: Vec<&str> = tail.lines().collect();
    assert_eq!(
        lines[..9],
        ["0.200 4", "0.200 5", "0.200 6", "0.200 7", "0.200 8", "0.200 9", "0.200 10", "0.200 11", "0.300 open line"]
    );
    assert!(lines.len() == 10 && lines[9].starts_with("0.400 [..]xx") && lines[9].ends_with("xend"), "{lines:?}");
    assert!(tail.len() < 10_000, "{}", tail.len());
}

#[test]
fn output_byte_by_byte_is_shown_as_if_it_came_at_once() {
    let text = "one\ntwo";
    let begin = (0, Event::Vertex(vertex(MAKE, Some(0), None)));
    let whole = vec![begin.clone(), (100, log(MAKE, 100, text))];
    let bytes = text.char_indices().map(|(n, _)| (100, log(MAKE, 100, &text[n..=n])));
    let split: Vec<_> = std::iter::once(begin).chain(bytes).collect();
    let shown = |events: &[(i64, Event)]| {
        let out = Shared::default();
        play(&mut plain::Plain::new(Box::new(out.clone()), &Environment::default()), events, 100);
        out.text()
    };
    assert_eq!(shown(&whole), shown(&split));
    // The build ended before the step did: it was given up.
    assert_eq!(shown(&whole), format!("#1 {MAKE}\n#1 0.100 one\n#1 0.100 two\n#1 CANCELED\n"));
}

#[test]
fn a_step_that_says_much_does_not_wait_for_the_floor() {
    let out = Shared::default();
    let mut plain = plain::Plain::new(Box::new(out.clone()), &Environment::default());
    let begin = [MAKE, TEST].map(|name| Event::Vertex(vertex(name, Some(0), None)));
    plain.update(&begin, at(0));
    plain.refresh(at(0));
    plain.update(&[log(MAKE, 10, "quiet\n"), log(TEST, 10, &"loud\n".repeat(1 << 18))], at(10));
    plain.refresh(at(10));
    let text = out.text();
    assert_eq!(text.matches(" loud\n").count(), 1 << 18);
    assert!(text.contains(" quiet\n"), "the other is not forgotten");
}
