//! The last lines that a step wrote, as a terminal of a few lines would show them: carriage returns go back,
//! escape sequences and control characters are left out.

use std::collections::VecDeque;

/// How many lines are kept; a frame shows at most these.
const LINES: usize = 50;
/// Longer lines are cut: nobody's terminal is that wide.
const COLUMNS: usize = 1000;

/// The last lines of some output.
#[derive(Default)]
pub(super) struct LogWindow {
    lines: VecDeque<String>,
    current: Vec<u8>,
    /// The next character overwrites the line from its start.
    returned: bool,
    escape: Escape,
    /// Bytes taken in all.
    pub bytes: u64,
}

/// Where we are in an escape sequence (ECMA-48).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// In a control sequence, until its final byte.
    Control,
    /// In an operating system command, until BEL or ESC \.
    Command,
}

impl LogWindow {
    /// Takes output.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.take(*byte);
        }
    }

    /// The last `count` lines that are not blank.
    pub fn last(&self, count: usize) -> Vec<String> {
        let current = text(&self.current);
        let all = self.lines.iter().cloned().chain(Some(current)).filter(|line| !line.trim().is_empty());
        let all: Vec<String> = all.collect();
        all[all.len().saturating_sub(count)..].to_vec()
    }

    fn take(&mut self, byte: u8) {
        self.escape = match (self.escape, byte) {
            (Escape::None, 0x1b) => Escape::Begun,
            (Escape::None, _) => return self.take_text(byte),
            (Escape::Begun, b'[') => Escape::Control,
            (Escape::Begun, b']') => Escape::Command,
            (Escape::Begun, _) => Escape::None,
            (Escape::Control, 0x40..=0x7e) => Escape::None,
            (Escape::Command, 0x07) => Escape::None,
            (Escape::Command, 0x1b) => Escape::Begun,
            (inside, _) => inside,
        };
    }

    fn take_text(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                self.returned = false;
                self.lines.push_back(text(&std::mem::take(&mut self.current)));
                if self.lines.len() > LINES {
                    self.lines.pop_front();
                }
            }
            b'\r' => self.returned = true,
            0x08 => {
                self.current.pop();
            }
            b'\t' => self.take_text(b' '),
            0..0x20 | 0x7f => {}
            _ => {
                if std::mem::take(&mut self.returned) {
                    self.current.clear();
                }
                if self.current.len() < COLUMNS {
                    self.current.push(byte);
                }
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_a_terminal_would() {
        for (written, shown) in [
            ("a\nb\n", vec!["a", "b"]),
            ("10%\r20%\r", vec!["20%"]),
            ("10%\r20%\r\nnext", vec!["20%", "next"]),
            ("\x1b[31mred\x1b[0m \x1b]0;title\x07x\n\n  \n", vec!["red x"]),
            ("ab\x08c\td\x00", vec!["ac d"]),
            ("1\n2\n3\n4\n", vec!["2", "3", "4"]),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", vec!["link"]),
        ] {
            let mut window = LogWindow::default();
            // Byte by byte, so that sequences are split.
            written.as_bytes().iter().for_each(|byte| window.write(&[*byte]));
            assert_eq!(window.last(3), shown, "{written:?}");
        }
        let mut window = LogWindow::default();
        window.write(b"caf\xc3\xa9 \xff\n");
        assert_eq!(window.last(1), ["café \u{fffd}"]);
    }
}
