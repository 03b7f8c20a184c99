//! Measures compression and decompression of one file as a layer: `layer_speed FILE [THREADS] [KIND:LEVEL ..]`.
//!
//! Build with `--release`. The file is read once before, so that the page cache, not the disk, is measured.

#![expect(clippy::print_stdout, reason = "a program that reports to people")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Instant;

use image::layer::compression::{Compressor, Unpacker};
use image::layer::tar::{Reader, Writer};
use image::layer::{Entry, EntryKind};
use image::{CompressionOptions, Descriptor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: layer_speed FILE [THREADS] [KIND:LEVEL ..]")?;
    let threads: usize = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let mut wanted: Vec<String> = arguments.collect();
    if wanted.is_empty() {
        wanted = ["uncompressed", "gzip", "zstd"].map(str::to_owned).to_vec();
    }
    let size = io::copy(&mut File::open(&path)?, &mut io::sink())?;
    for name in wanted {
        let (kind, level) = match name.split_once(':') {
            Some((kind, level)) => (kind, Some(level.parse()?)),
            None => (name.as_str(), None),
        };
        let options = CompressionOptions { kind: kind.parse()?, level, force: false, threads };
        let blob = std::env::temp_dir().join(format!("layer-speed-{}", std::process::id()));
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let mut tar = Writer::new(Compressor::new(File::create(&blob)?, &options)?);
        tar.append(&Entry::new("file", EntryKind::File { size }, 0o644), File::open(&path)?)?;
        let (out, _) = tar.finish()?.finish()?;
        report(&format!("{name} x{threads} out"), size, started, cpu);
        println!("    {} of {size} bytes ({:.2} %), {}", out.size, out.size as f64 * 100.0 / size as f64, out.digest);

        let (started, cpu) = (Instant::now(), cpu_seconds());
        let descriptor = Descriptor::new("", out.digest, out.size);
        let mut tar = Reader::new(Unpacker::start(File::open(&blob)?, &descriptor, u64::MAX)?);
        let mut buffer = vec![0; 256 << 10];
        while tar.next_entry()?.is_some() {
            while tar.read(&mut buffer)? > 0 {}
        }
        let unpacked = tar.drain()?.finish()?;
        assert_eq!(unpacked.diff_id, out.diff_id, "the layer came back changed");
        report(&format!("{name} in"), size, started, cpu);
        std::fs::remove_file(&blob)?;
    }
    println!("peak memory {} kB", status_field("VmHWM:"));
    small_entries()?;
    io::stdout().flush()?;
    Ok(())
}

/// Headers alone: many small files, to and from memory.
fn small_entries() -> Result<(), image::Error> {
    const COUNT: u64 = 200_000;
    let started = cpu_seconds();
    let mut tar = Writer::new(Vec::new());
    for i in 0..COUNT {
        let path = format!("usr/share/doc/package-{}/file-{i}", i / 100);
        tar.append(&Entry::new(path, EntryKind::File { size: 100 }, 0o644), &[7; 100][..])?;
    }
    let bytes = tar.finish()?;
    let written = cpu_seconds();
    let mut tar = Reader::new(bytes.as_slice());
    while tar.next_entry()?.is_some() {}
    let per_entry = |seconds: f64| seconds * 1e9 / COUNT as f64;
    let (out, back) = (per_entry(written - started), per_entry(cpu_seconds() - written));
    println!("small files: {out:.0} ns each out, {back:.0} ns in (processor time)");
    Ok(())
}

fn report(what: &str, size: u64, started: Instant, cpu: f64) {
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    println!("{what}: {seconds:.3} s, {:.0} MB/s, {cpu:.2} s of processor time", size as f64 / 1e6 / seconds);
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn status_field(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or("?").to_owned()
}
