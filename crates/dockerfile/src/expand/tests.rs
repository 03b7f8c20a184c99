use super::*;

fn env() -> llb::build::Env {
    let mut env = llb::build::Env::new();
    for (key, value) in [("A", "a"), ("EMPTY", ""), ("P", "/usr/lib/x.tar.gz"), ("SP", "x  y"), ("STAR", "a*b*c")] {
        env.set(key, value);
    }
    env
}

#[test]
fn words_expand_as_upstream() {
    let lexer = Lexer::new('\\');
    for (text, out) in [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("'a$A'", "a$A"),
        ("\"a$A\"", "aa"),
        (r#""a\$A\"\\\n""#, r#"a$A"\\n"#),
        (r"\$A\'", "$A'"),
        (r"a\", "a"),
        ("$A$A-${A}b", "aa-ab"),
        ("$", "$"),
        ("$.", "$."),
        ("$NONE.", "."),
        ("$1x$@", "x"),
        ("${NONE:-d}${NONE-d}${EMPTY:-d}${EMPTY-d}", "ddd"),
        ("${NONE:+d}${NONE+d}${EMPTY:+d}${EMPTY+d}${A:+s}", "ds"),
        ("${A:?x}${EMPTY?x}", "a"),
        ("${NONE:-${A:-b}c}", "ac"),
        ("${NONE:-\"$A b\"}", "a b"),
        ("${P#/*/}|${P##*/}|${P%.*}|${P%%.*}", "lib/x.tar.gz|x.tar.gz|/usr/lib/x.tar|/usr/lib/x"),
        ("${P#nothing}", "/usr/lib/x.tar.gz"),
        (
            "${P/lib/LIB}|${P//r/R}|${P/?sr/-}",
            "/usr/LIB/x.tar.gz|/usR/lib/x.taR.gz|//lib/x.tar.gz".replace("//lib", "/-/lib").as_str(),
        ),
        (r"${P/\/usr\//}|${STAR/\*/_}|${STAR//\*/_}", "lib/x.tar.gz|a_b*c|a_b_c"),
        (r"${STAR%\**}|${STAR%%\**}", "a*b|a"),
        ("a < b << c", "a < b << c"),
    ] {
        assert_eq!(lexer.expand(text, &env()).expect(text).text, out, "{text}");
    }
}

#[test]
fn spaces_part_words_unless_quoted() {
    for (text, words) in [
        ("a  b\tc", vec!["a", "b", "c"]),
        ("'a b' c\\ d", vec!["a b", "c d"]),
        ("$SP\"$SP\"", vec!["x", "yx  y"]),
        ("pre${A:-x}post", vec!["preapost"]),
        ("cat <<- EOF x", vec!["cat", "<<-", "EOF", "x"]),
        ("cat << EOF x", vec!["cat", "<< EOF", "x"]),
        ("''", vec![]),
    ] {
        assert_eq!(Lexer::new('\\').expand(text, &env()).expect(text).words, words, "{text}");
    }
}

#[test]
fn unset_variables_can_stay() {
    let lexer = Lexer::new('\\').keep_unset().raw_quotes();
    for text in ["$X", "${X}", "${X:-a}", "${X/a/b}", "'$A'", "${X%a}"] {
        assert_eq!(lexer.expand(text, &env()).expect(text).text, text, "{text}");
    }
    assert_eq!(Lexer::new('\\').ignore_quotes().expect_text("'$A\" \\$A"), "'a\" $A");
}

impl Lexer {
    fn expect_text(&self, text: &str) -> String {
        self.expand(text, &env()).expect(text).text
    }
}

#[test]
fn the_escape_can_be_a_backtick() {
    assert_eq!(Lexer::new('`').expect_text(r"c:\$A`$A"), r"c:\a$A");
}

#[test]
fn names_are_reported() {
    let out = Lexer::new('\\').expand("$A ${B:-$C}", &env()).expect("valid");
    assert_eq!(Vec::from_iter(out.matched), ["A"]);
    assert_eq!(Vec::from_iter(out.unmatched), ["B", "C"]);
}

#[test]
fn mistakes_are_named() {
    for (text, part) in [
        ("'a", "single quote"),
        ("\"a", "double quote"),
        ("${A", "`}` is missing"),
        ("${A:-b", "`}` is missing"),
        ("${}", "no variable name"),
        ("${:x}", "no variable name"),
        ("${A:x}", "`:x` is not known"),
        ("${A^}", "`^` is not known"),
        ("${NONE:?}", "`NONE` must be set"),
        ("${EMPTY:?}", "`EMPTY` must not be empty"),
        ("${NONE?call me}", "NONE: call me"),
        ("${A/b}", "`/` is missing"),
        (r"${A#\b}", "no escape"),
    ] {
        let error = Lexer::new('\\').expand(text, &env()).expect_err(text).to_string();
        assert!(error.starts_with("cannot expand `") && error.contains(part), "{text}: {error}");
    }
    let deep = "${A:+".repeat(100_000);
    assert!(Lexer::new('\\').expand(&deep, &env()).is_err());
}
