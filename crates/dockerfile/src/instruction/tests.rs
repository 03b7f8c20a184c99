use super::*;
use crate::parse::parse as split;

fn one(text: &str) -> Kind {
    let document = split(text.as_bytes()).expect(text);
    parse(document.lines[0].clone()).expect(text).kind
}

#[test]
fn copies_have_sources_files_and_a_destination() {
    let Kind::Copy(copy) = one("COPY --link --chown=1 --exclude=a --exclude=b x <<E <<-'F' y /z/\n1\nE\n\t2\nF\n")
    else {
        panic!("a copy")
    };
    assert_eq!((copy.sources, copy.dest.as_str()), (vec!["x".to_owned(), "y".to_owned()], "/z/"));
    assert!(copy.link && !copy.add && copy.chown == "1" && copy.exclude == ["a", "b"]);
    let file = |name: &str, content: &str, expand| Inline { name: name.into(), content: content.into(), expand };
    assert_eq!(copy.inline, [file("E", "1\n", true), file("F", "2\n", false)]);
}

#[test]
fn mounts_are_read() {
    let parse = |text: &str| Mount::parse(text, |value| Ok(value.replace("$X", "x"))).expect(text);
    let mount = parse("type=cache,id=$X,target=/c,sharing=Locked,uid=1,mode=0700");
    assert_eq!((mount.kind, mount.id.as_str(), mount.readonly), (MountKind::Cache, "x", false));
    assert_eq!((mount.sharing, mount.uid, mount.mode), (Some(Sharing::Locked), Some(1), Some(0o700)));
    let mount = parse("\"target=/a,b\",rw=false");
    assert_eq!((mount.kind, mount.target.as_str(), mount.readonly), (MountKind::Bind, "/a,b", true));
    assert!(!parse("target=/a,readwrite").readonly);
    assert_eq!(parse("type=tmpfs,target=/a,size=1.5k").size, 1536);
    assert!(parse("type=secret,id=a,required").required);
}

#[test]
fn commands_have_two_forms() {
    for (text, args, shell) in
        [("CMD a  \"b\"", vec!["a  \"b\""], true), ("CMD [\"a\", \"b\"]", vec!["a", "b"], false), ("CMD", vec![], true)]
    {
        let Kind::Cmd(line) = one(text) else { panic!("{text}") };
        assert_eq!((line.args, line.shell), (args.into_iter().map(str::to_owned).collect(), shell), "{text}");
    }
}

#[test]
fn triggers_keep_their_documents() {
    let Kind::Onbuild(text) = one("onbuild  RUN <<E cat\n a\nE\n") else { panic!("a trigger") };
    assert_eq!(text, "RUN <<E cat\n a\nE");
    assert!(matches!(one(&text), Kind::Run(run) if run.command.heredocs[0].content == " a\n"));
}
