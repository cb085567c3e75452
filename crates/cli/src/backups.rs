//! The backups of an environment, as its repository holds them, and how they are shown.

use crate::arguments::{Format, GetArgs, Global, ListArgs};
use crate::failure::Failure;
use crate::output::{put, tell};
use crate::place::Place;
use crate::terminal::Terminal;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use stillpoint_model::ids::BackupId;
use stillpoint_model::manifest::{Completeness, Consistency, MANIFEST_VERSION, Manifest, Part};
use stillpoint_repository::{BlobId, Node, Reader, Snapshot};

use crate::environment::role;

/// One backup.
pub(crate) struct Stored {
    /// Its tree.
    tree: BlobId,
    /// Its record.
    pub manifest: Manifest,
}

/// All that is sure of a manifest of any version.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

impl Stored {
    /// Every backup of the environment that can be read, newest first, and why others cannot.
    pub(crate) fn all(place: &Place, reader: &Reader) -> (Vec<Self>, Vec<Failure>) {
        let tag = format!("environment={}", place.name);
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        for (_, snapshot) in reader.snapshots() {
            if snapshot.tags.contains(&tag) {
                match Self::read(reader, snapshot) {
                    Ok(stored) => all.push(stored),
                    Err(failure) => unreadable.push(failure),
                }
            }
        }
        unreadable.extend(damaged(reader));
        all.sort_by_key(|backup| std::cmp::Reverse(backup.manifest.created));
        (all, unreadable)
    }

    /// The newest backup, without reading the others.
    pub(crate) fn newest(place: &Place, reader: &Reader) -> Result<Option<Self>, Failure> {
        let tag = format!("environment={}", place.name);
        let newest = reader
            .snapshots()
            .iter()
            .filter(|(_, snapshot)| snapshot.tags.contains(&tag))
            .max_by_key(|(_, snapshot)| snapshot.time);
        newest.map(|(_, snapshot)| Self::read(reader, snapshot)).transpose()
    }

    /// One backup by its id.
    pub(crate) fn one(place: &Place, reader: &Reader, id: &str) -> Result<Self, Failure> {
        let id: BackupId = id.parse().map_err(|e| Failure::usage(format!("{e}")))?;
        let (tag, of) = (format!("backup={id}"), format!("environment={}", place.name));
        reader
            .snapshots()
            .iter()
            .find(|(_, snapshot)| snapshot.tags.contains(&tag) && snapshot.tags.contains(&of))
            .map(|(_, snapshot)| Self::read(reader, snapshot))
            .transpose()?
            .ok_or_else(|| {
                Failure::new(format!("environment `{}` has no backup {id}", place.name))
                    .hint("`stillpoint backup:list` shows what there is")
            })
    }

    fn read(reader: &Reader, snapshot: &Snapshot) -> Result<Self, Failure> {
        let tag = snapshot.tags.iter().find_map(|tag| tag.strip_prefix("backup="));
        let id = tag.unwrap_or("without an id");
        let fail =
            || Failure::new(format!("read the manifest of backup {id} of {:.0}", snapshot.time));
        let node =
            reader.lookup(&snapshot.tree, "manifest.json").map_err(|e| fail().because(&e))?;
        let mut text = Vec::new();
        reader
            .open(node.content.as_deref().unwrap_or_default())
            .read_to_end(&mut text)
            .map_err(|e| fail().because(&e))?;
        // Before anything else of it: another version may look different altogether.
        let Versioned { version } =
            serde_json::from_slice(&text).map_err(|e| fail().because(&e))?;
        if version != MANIFEST_VERSION {
            return Err(fail().hint(format!(
                "it has version {version}, this program knows {MANIFEST_VERSION}: a newer one is \
                 needed"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| fail().because(&e))?;
        Ok(Self { tree: snapshot.tree, manifest })
    }

    /// The directory of one of its parts, and the tree below it.
    pub(crate) fn directory_of(
        &self,
        reader: &Reader,
        part: &Part,
    ) -> Result<(Node, BlobId), Failure> {
        let path = format!("{}s/{}", role(part.role), part.name);
        let fail = || Failure::new(format!("the backup lacks `{path}`"));
        let node = reader.lookup(&self.tree, &path).map_err(|e| fail().because(&e))?;
        let tree = node.subtree.ok_or_else(fail)?;
        Ok((node, tree))
    }
}

/// Snapshots that cannot even be opened, so that nothing tells which environment they are of.
fn damaged(reader: &Reader) -> impl Iterator<Item = Failure> + '_ {
    reader.damaged().iter().map(|(id, error)| {
        Failure::new(format!("snapshot {id} is damaged, whatever it is of")).because(error)
    })
}

/// Says that there may be newer backups than those that can be seen.
pub(crate) fn warn_of_damaged(reader: &Reader, terminal: &Terminal) {
    for failure in damaged(reader) {
        terminal.say(&format!("warning: {failure}"));
    }
}

/// `backup:list`.
pub(crate) fn list(global: &Global, arguments: &ListArgs) -> Result<(), Failure> {
    let place = Place::find(global, arguments.name.as_deref())?;
    let (all, unreadable) = Stored::all(&place, &open(&place)?);
    print(&all, global.format).map_err(|e| Failure::new("print").because(&e))?;
    if all.iter().any(|backup| backup.manifest.consistency == Consistency::Live) && !global.quiet {
        tell(&format!("note: {LIVE_WARNING}"));
    }
    if unreadable.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = unreadable.iter().map(|why| format!("\n  {why}")).collect();
    let count = unreadable.len();
    Err(Failure::new(format!("{count} of the backups cannot be read:{}", lines.concat())))
}

/// `backup:get`.
pub(crate) fn get(global: &Global, arguments: &GetArgs) -> Result<(), Failure> {
    let place = Place::find(global, None)?;
    let stored = Stored::one(&place, &open(&place)?, &arguments.id)?;
    if global.format == Format::Json {
        return put(&format!("{:#}", object(&stored.manifest)));
    }
    print(std::slice::from_ref(&stored), global.format)
        .map_err(|e| Failure::new("print").because(&e))?;
    for gap in &stored.manifest.gaps {
        put(&format!("missing: {}: {}: {}", gap.part, gap.what, gap.why))?;
    }
    for doubt in &stored.manifest.doubts {
        put(&format!("doubt: {doubt}"))?;
    }
    Ok(())
}

/// Opens the environment's repository for reading.
pub(crate) fn open(place: &Place) -> Result<Reader, Failure> {
    place
        .repository(false)?
        .reader()
        .map_err(|e| Failure::new("read the repository's index").because(&e))
}

/// The word for a consistency, as the manifest writes it.
pub(crate) fn consistency(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Consistent => "consistent",
        Consistency::CrashConsistent => "crash-consistent",
        Consistency::Live => "live",
    }
}

/// The word for a completeness, as the manifest writes it.
pub(crate) fn completeness(completeness: Completeness) -> &'static str {
    match completeness {
        Completeness::Complete => "complete",
        Completeness::Partial => "partial",
    }
}

/// Says what keeps a held backup from being consistent, if anything does.
pub(crate) fn tell_doubts(manifest: &Manifest, which: &str, terminal: &Terminal) {
    if manifest.consistency == Consistency::CrashConsistent {
        terminal.say(&format!("{which} is crash-consistent only:"));
        for doubt in manifest.doubts.iter().take(10) {
            terminal.say(&format!("  {doubt}"));
        }
    }
}

/// What a live backup is warned of, wherever it shows.
pub(crate) const LIVE_WARNING: &str =
    "a live backup is less reliable to restore: its services are not at one instant";

/// A backup as an object of the API: the same shape, so that scripts outlive this form.
pub(crate) fn object(manifest: &Manifest) -> serde_json::Value {
    let mut attributes = BTreeMap::from([
        ("consistency", consistency(manifest.consistency).to_owned()),
        ("completeness", completeness(manifest.completeness).to_owned()),
        ("bytes_captured", manifest.parts.iter().map(|p| p.bytes).sum::<u64>().to_string()),
        ("copies", "1".to_owned()),
    ]);
    if let Some(evidence) = &manifest.evidence {
        attributes.insert("hold_ms", format!("{:.1}", evidence.hold_ms()));
        attributes.insert("drain_ms", format!("{:.1}", evidence.drain_ms()));
        attributes.insert("mark_ms", format!("{:.1}", evidence.mark_ms()));
        attributes.insert("hold_begin", format!("{:.6}", evidence.hold_begin));
        attributes.insert("hold_end", format!("{:.6}", evidence.hold_end));
        let sum = |pick: fn(&stillpoint_model::manifest::GatewayEvidence) -> u64| {
            evidence.gateways.iter().map(pick).sum::<u64>().to_string()
        };
        attributes.insert("requests_in_flight", sum(|g| g.in_flight_at_begin));
        attributes.insert("requests_held", sum(|g| g.held));
    }
    serde_json::json!({
        "id": manifest.backup,
        "environment": manifest.environment,
        "status": "CREATED",
        "safe": manifest.consistency != Consistency::Live,
        "restorable": true,
        "automated": false,
        "index": null,
        "commit_id": manifest.code.as_ref().map(|code| code.commit.clone()),
        "created_at": format!("{:.6}", manifest.created),
        "updated_at": format!("{:.6}", manifest.created),
        "expires_at": null,
        "attributes": attributes,
        "gaps": manifest.gaps,
        "doubts": manifest.doubts,
        "evidence": manifest.evidence,
        "parts": manifest.parts,
    })
}

/// Prints backups on stdout.
pub(crate) fn print(backups: &[Stored], format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        let objects: Vec<_> = backups.iter().map(|b| object(&b.manifest)).collect();
        serde_json::to_writer_pretty(&mut out, &objects)?;
        return writeln!(out);
    }
    let heading = ["id", "created", "consistency", "completeness", "hold ms", "bytes"];
    let rows: Vec<[String; 6]> = backups.iter().map(|b| row(&b.manifest)).collect();
    match format {
        Format::Plain => rows.iter().try_for_each(|row| writeln!(out, "{}", row.join("\t"))),
        Format::Csv => {
            writeln!(out, "{}", heading.join(","))?;
            rows.iter().try_for_each(|row| writeln!(out, "{}", row.join(",")))
        }
        Format::Table | Format::Json => {
            let width = |column: usize| {
                rows.iter().map(|row| row[column].len()).chain([heading[column].len()]).max()
            };
            let widths: Vec<usize> = (0..heading.len()).filter_map(width).collect();
            let mut line = |cells: &[String]| {
                let padded: Vec<String> = cells
                    .iter()
                    .zip(&widths)
                    .map(|(cell, width)| format!("{cell:<width$}"))
                    .collect();
                writeln!(out, "{}", padded.join("  ").trim_end())
            };
            line(&heading.map(str::to_owned))?;
            rows.iter().try_for_each(|row| line(row))
        }
    }
}

fn row(manifest: &Manifest) -> [String; 6] {
    let hold = manifest.evidence.as_ref().map(|e| format!("{:.1}", e.hold_ms()));
    [
        manifest.backup.to_string(),
        format!("{:.0}", manifest.created),
        consistency(manifest.consistency).to_owned(),
        completeness(manifest.completeness).to_owned(),
        hold.unwrap_or_else(|| "-".to_owned()),
        manifest.parts.iter().map(|p| p.bytes).sum::<u64>().to_string(),
    ]
}
