//! `type=oci` and `type=docker`: an image as a tar or as an OCI layout in a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use base::{Cancel, CancelReader, Fault, Kind};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image::archive::{ArchiveKind, name_manifests, write_archive};
use image::{Descriptor, Reference, annotation};
use session::{CacheDir, Output};
use store::Store;

use crate::assemble::Assembled;
use crate::tree::{Target, no_directory, write_stream};
use crate::{Context, ImageOptions, image_fault, output_fault};

pub(crate) async fn write(
    context: &Context,
    assembled: Assembled,
    image: &ImageOptions,
    docker: bool,
    tar: bool,
    output: Output,
) -> Result<BTreeMap<String, String>, Fault> {
    let names = names(image)?;
    let mut fetches = Vec::new();
    for layer in assembled.layers.iter().filter(|layer| !layer.present) {
        fetches.push(context.lazy.fetch_blob(layer.snapshot.id()));
    }
    stream::iter(fetches).buffer_unordered(4).try_collect::<Vec<()>>().await?;

    let seconds = image.epoch.unwrap_or_else(|| jiff::Timestamp::now().as_second());
    let created = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
    let mut assembled = assembled;
    // Clients that name an image in a layout themselves take over what we say of it.
    assembled.root.annotations.entry(annotation::CREATED.to_owned()).or_insert_with(|| created.clone());
    let mut response = assembled.response();
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        response.insert("image.name".to_owned(), names.join(","));
    }
    let kind = if docker { ArchiveKind::Docker } else { ArchiveKind::Oci };
    let roots = name_manifests(&assembled.root, &names, &created);
    let store = context.store.clone();
    match (tar, output) {
        (true, output) => {
            let task = context.tasks.start("sending tarball", 0);
            let target = Target::of(output, "one tar", &response).await?;
            let cancel = context.cancel.clone();
            write_stream(context, target, task, move |sink| {
                write_archive(sink, kind, &roots, |blob| open(&store, &cancel, blob)).map(drop).map_err(to_io)
            })
            .await?;
        }
        (false, Output::Directory(dir)) => {
            let _task = context.tasks.start("copying files", 0);
            // The archive is the layout: its entries become files.
            let cancel = context.cancel.clone();
            let what = format!("writing to `{}`", dir.display());
            context.blocking(what, move || write_layout(&dir, kind, &roots, &store, &cancel)).await?;
        }
        (false, Output::Store(to)) => send_blobs(context, &*to, &assembled).await?,
        (false, _) => return Err(no_directory("tar=false")),
    }
    Ok(response)
}

/// Gives a client the blobs that it does not have yet; what refers to others comes after them.
async fn send_blobs(context: &Context, to: &dyn CacheDir, assembled: &Assembled) -> Result<(), Fault> {
    let documents = assembled.configs.iter().chain(&assembled.manifests).chain([&assembled.root]);
    let mut sent = BTreeSet::new();
    for blob in assembled.layers.iter().map(|layer| &layer.descriptor).chain(documents) {
        if !sent.insert(blob.digest) {
            continue;
        }
        let task = context.tasks.start(format!("sending {}", blob.digest), blob.size).of_reading();
        let file = open(&context.store, &context.cancel, blob).map_err(|e| image_fault("cannot read the image", e))?;
        to.put(&blob.digest, blob.size, Box::new(task.count(file))).await?;
        task.all();
    }
    Ok(())
}

fn names(image: &ImageOptions) -> Result<Vec<Reference>, Fault> {
    let parse = |name: &String| -> Result<Reference, Fault> {
        let parsed = name.parse::<Reference>();
        parsed.map(Reference::or_latest).map_err(|e| Fault::because(Kind::User, format!("bad image name `{name}`"), e))
    };
    image.names.iter().map(parse).collect()
}

fn open(store: &Store, cancel: &Cancel, blob: &Descriptor) -> Result<CancelReader<File>, image::Error> {
    let found = store.content().get(&blob.digest).map_err(io::Error::other)?;
    let found =
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("blob {} is gone", blob.digest)))?;
    Ok(cancel.reader(found.file))
}

fn to_io(error: image::Error) -> io::Error {
    match error {
        image::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn write_layout(
    dir: &Path,
    kind: ArchiveKind,
    roots: &[Descriptor],
    store: &Store,
    cancel: &Cancel,
) -> Result<(), Fault> {
    let failed = |e: io::Error| output_fault(dir, e);
    std::fs::create_dir_all(dir).map_err(failed)?;
    let (reader, writer) = io::pipe().map_err(failed)?;
    std::thread::scope(|scope| {
        let unpack = || crate::tree::unpack_into(dir, reader);
        let unpacking = std::thread::Builder::new().spawn_scoped(scope, unpack).map_err(failed)?;
        let written = write_archive(writer, kind, roots, |blob| open(store, cancel, blob)).map(drop);
        let unpacked = unpacking.join().unwrap_or_else(|_| Err(io::Error::other("unpacking stopped")));
        // A failed unpack breaks the pipe; its reason is the one to tell.
        unpacked.map_err(failed)?;
        written.map_err(|e| image_fault("cannot write the image", e))
    })
}
