//! `stillpoint repo`: the repository engine alone, on a directory. What it writes and reads is
//! restic's format; no configuration, gateway or watchdog is needed.

use crate::arguments::{Format, Global};
use crate::failure::Failure;
use crate::output::{put, tell};
use crate::terminal::Terminal;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stillpoint_repository::{
    BackupOptions, BlobId, CheckOptions, LocalStore, Node, NodeKind, Reader, Repository,
    RepositoryError, RestoreOptions, Snapshot, SnapshotId,
};

/// Of `repo`.
#[derive(Debug, Args)]
#[command(after_help = "The password is the first line of --password-file; without that option \
    RESTIC_PASSWORD_FILE and RESTIC_PASSWORD are looked at.\n\nExamples:\n  \
    stillpoint repo init -r /srv/backup --password-file key\n  \
    stillpoint repo backup -r /srv/backup --password-file key /etc /home --exclude '*.tmp'\n  \
    stillpoint repo snapshots -r /srv/backup --password-file key\n  \
    stillpoint repo restore -r /srv/backup --password-file key latest --target /tmp/restored\n\n\
    Stock restic opens the same directory: restic -r /srv/backup --password-file key snapshots")]
pub(crate) struct RepoArgs {
    /// What to do
    #[command(subcommand)]
    pub command: RepoCommand,
}

/// Which repository, and what opens it.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// The repository's directory
    #[arg(short, long, env = "RESTIC_REPOSITORY", value_name = "DIR")]
    pub repo: PathBuf,
    /// A file with the password
    #[arg(long, env = "RESTIC_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// What to do with a repository.
#[derive(Debug, Subcommand)]
pub(crate) enum RepoCommand {
    /// Create a repository; prints its id
    Init {
        #[command(flatten)]
        access: Access,
    },
    /// Save files and directories as a snapshot; prints its id
    #[command(after_help = "Files that did not change since the last snapshot of the same paths \
        are not read again. Exit status 3: something could not be read; the rest is saved.\n\n\
        Example:\n  stillpoint repo backup -r /srv/backup /etc /home --tag nightly")]
    Backup {
        #[command(flatten)]
        access: Access,
        /// What to save
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Leave out what matches: a name (`*.tmp`), or a path if it has a `/`
        #[arg(long, value_name = "PATTERN")]
        exclude: Vec<String>,
        /// Label the snapshot
        #[arg(long, value_name = "TAG", value_delimiter = ',')]
        tag: Vec<String>,
        /// The host's name in the snapshot [default: this machine's]
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// The snapshot's time, such as 2030-01-31T12:00:00Z [default: now]
        #[arg(long, value_name = "TIME")]
        time: Option<Timestamp>,
        /// Read every file, also those that look unchanged
        #[arg(long)]
        force: bool,
    },
    /// List the snapshots, the oldest first
    Snapshots {
        #[command(flatten)]
        access: Access,
    },
    /// List what is in a snapshot
    Ls {
        #[command(flatten)]
        access: Access,
        /// The snapshot's id or its beginning, or `latest`; with `:PATH` what is below that
        snapshot: String,
    },
    /// Restore a snapshot into an empty or new directory
    #[command(after_help = "Examples:\n  \
        stillpoint repo restore -r /srv/backup latest --target /tmp/all\n  \
        stillpoint repo restore -r /srv/backup 1a2b3c4d:home/ann --target /tmp/ann")]
    Restore {
        #[command(flatten)]
        access: Access,
        /// The snapshot's id or its beginning, or `latest`; with `:PATH` what is below that
        snapshot: String,
        /// Where to
        #[arg(long, value_name = "DIR")]
        target: PathBuf,
        /// The target may hold files; those of the same name are replaced
        #[arg(long)]
        overwrite: bool,
        /// Read what was restored again, and compare it with the snapshot
        #[arg(long)]
        verify: bool,
    },
    /// Check that everything is there; prints what is damaged
    Check {
        #[command(flatten)]
        access: Access,
        /// Read and verify every byte as well
        #[arg(long)]
        read_data: bool,
    },
}

/// Runs `repo`.
pub(crate) fn run(global: &Global, arguments: &RepoArgs) -> Result<(), Failure> {
    let terminal = Terminal::new(global.quiet, global.verbose > 0);
    match &arguments.command {
        RepoCommand::Init { access } => init(access),
        RepoCommand::Backup { access, paths, exclude, tag, host, time, force } => {
            let options = BackupOptions {
                tags: tag.clone(),
                host: host.clone(),
                time: *time,
                excludes: exclude.clone(),
                read_all: *force,
                ..BackupOptions::default()
            };
            backup(&access.open()?, paths, &options, &terminal)
        }
        RepoCommand::Snapshots { access } => {
            let list = access.open()?.list_snapshots().map_err(failure)?;
            list_snapshots(&list.snapshots, global.format)?;
            name_damaged(&list.damaged)
        }
        RepoCommand::Ls { access, snapshot } => {
            let reader = access.open()?.reader().map_err(failure)?;
            let tree = find(&reader, snapshot)?;
            list(&reader, &tree, Path::new("/"), global.format)
        }
        RepoCommand::Restore { access, snapshot, target, overwrite, verify } => {
            let options = RestoreOptions { into_existing: *overwrite };
            let reader = access.open()?.reader().map_err(failure)?;
            restore(&reader, snapshot, target, &options, *verify, &terminal)
        }
        RepoCommand::Check { access, read_data } => {
            check(&access.open()?, &CheckOptions { read_data: *read_data }, &terminal)
        }
    }
}

impl Access {
    fn store(&self) -> Result<Arc<LocalStore>, Failure> {
        let store = LocalStore::new(&self.repo).map_err(|error| {
            Failure::new(format!("find {}", self.repo.display())).because(&error)
        })?;
        Ok(Arc::new(store))
    }

    fn open(&self) -> Result<Repository, Failure> {
        Repository::open(self.store()?, &self.password()?).map_err(failure)
    }

    /// Blanks around it are not part of it, as in stock clients: editors end files with newlines.
    fn password(&self) -> Result<String, Failure> {
        let password = match &self.password_file {
            Some(file) => std::fs::read_to_string(file).map_err(|error| {
                Failure::usage(format!("read the password file {}", file.display())).because(&error)
            })?,
            None => std::env::var("RESTIC_PASSWORD").map_err(|_| {
                Failure::usage("no password was given")
                    .hint("name a file with --password-file, or set RESTIC_PASSWORD")
            })?,
        };
        Ok(password.trim().to_owned())
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is used with map_err")]
fn failure(error: RepositoryError) -> Failure {
    let hint = error.hint();
    let mut failure = Failure::new(error.to_string());
    if let Some(source) = error.source() {
        failure = failure.because(source);
    }
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn init(access: &Access) -> Result<(), Failure> {
    let repository = Repository::init(access.store()?, &access.password()?).map_err(failure)?;
    put(repository.id())
}

fn backup(
    repository: &Repository,
    paths: &[PathBuf],
    options: &BackupOptions,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let report = repository.backup(paths, options, terminal).map_err(failure)?;
    terminal.clear();
    for (path, note) in &report.found.notes {
        terminal.say(&format!("note: {}: {note}", path.display()));
    }
    let found = &report.found;
    terminal.say(&format!(
        "{} files read, {} unchanged, {} directories; {} bytes in all, {} new, {} stored",
        found.files_read,
        found.files_unchanged,
        found.directories,
        found.bytes,
        report.stats.bytes_added,
        report.stats.bytes_stored
    ));
    if let Some(why) = &report.stats.lock_left {
        terminal.say(&format!("note: the lock file stays behind: {why}"));
    }
    put(&report.snapshot.to_hex())?;
    if found.gaps.is_empty() {
        return Ok(());
    }
    let named: Vec<String> =
        found.gaps.iter().map(|(path, why)| format!("\n  {}: {why}", path.display())).collect();
    Err(Failure::partial(format!("{} could not be read:{}", found.gaps.len(), named.concat())))
}

fn list_snapshots(snapshots: &[(SnapshotId, Snapshot)], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let objects: Vec<serde_json::Value> = snapshots
            .iter()
            .map(|(id, snapshot)| {
                let mut object = serde_json::to_value(snapshot).unwrap_or_default();
                object["id"] = id.to_hex().into();
                object["short_id"] = id.short().into();
                object
            })
            .collect();
        return put(&format!("{:#}", serde_json::Value::Array(objects)));
    }
    let rows = snapshots.iter().map(|(id, snapshot)| {
        [
            id.short(),
            snapshot.time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            snapshot.hostname.clone(),
            snapshot.tags.join(","),
            snapshot.paths.join(","),
        ]
        .map(|field| printable(&field))
    });
    let rows: Vec<[String; 5]> = rows.collect();
    let heading = ["ID", "Time (UTC)", "Host", "Tags", "Paths"].map(str::to_owned);
    match format {
        Format::Plain => rows.iter().try_for_each(|row| put(&row.join("\t"))),
        Format::Csv => std::iter::once(&heading).chain(&rows).try_for_each(|row| {
            let quoted = row.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\"")));
            put(&quoted.collect::<Vec<_>>().join(","))
        }),
        Format::Table | Format::Json => {
            let width = |column: usize| {
                rows.iter().chain([&heading]).map(|row| row[column].chars().count()).max()
            };
            let widths = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
            std::iter::once(&heading).chain(&rows).try_for_each(|row| {
                let padded = row.iter().zip(widths).map(|(field, width)| format!("{field:width$}"));
                let line = padded.chain([row[4].clone()]).collect::<Vec<_>>().join("  ");
                put(line.trim_end())
            })
        }
    }
}

/// Names the snapshots that cannot be read; that there are any is a failure.
fn name_damaged(damaged: &[(SnapshotId, RepositoryError)]) -> Result<(), Failure> {
    let Some((_, first)) = damaged.first() else { return Ok(()) };
    let lines: Vec<String> =
        damaged.iter().map(|(id, error)| format!("\n  {}", unreadable(id, error))).collect();
    let failed = Failure::new(format!(
        "{} snapshots cannot be read; the others are listed:{}",
        damaged.len(),
        lines.concat()
    ));
    Err(match first.hint() {
        Some(hint) => failed.hint(hint),
        None => failed,
    })
}

/// A damaged snapshot's id in full, which is its file's name, and the reason.
fn unreadable(id: &SnapshotId, error: &RepositoryError) -> String {
    let mut text = format!("{}: {error}", id.to_hex());
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The tree that `SNAPSHOT` or `SNAPSHOT:PATH` means.
fn find(reader: &Reader, text: &str) -> Result<BlobId, Failure> {
    let (snapshot, path) = text.split_once(':').unwrap_or((text, ""));
    if snapshot == "latest" {
        // One of these may be the latest: said also to those who want quiet.
        for (id, error) in reader.damaged() {
            tell(&format!("note: passed over {}", unreadable(id, error)));
        }
    }
    let (_, snapshot) = reader
        .find_snapshot(snapshot)
        .map_err(|error| failure(error).hint("`stillpoint repo snapshots` shows what there is"))?;
    if path.trim_matches('/').is_empty() {
        return Ok(snapshot.tree);
    }
    let node = reader.lookup(&snapshot.tree, path).map_err(failure)?;
    node.subtree.ok_or_else(|| Failure::usage(format!("`{path}` is no directory of the snapshot")))
}

fn list(reader: &Reader, tree: &BlobId, above: &Path, format: Format) -> Result<(), Failure> {
    for node in reader.tree(tree).map_err(failure)?.nodes {
        let path = above.join(&node.name);
        match format {
            Format::Json => put(&describe(&node, &path).to_string())?,
            _ => put(&printable(&path.to_string_lossy()))?,
        }
        if let Some(subtree) = &node.subtree {
            list(reader, subtree, &path, format)?;
        }
    }
    Ok(())
}

/// One line of JSON for one entry.
fn describe(node: &Node, path: &Path) -> serde_json::Value {
    let kind = match &node.kind {
        NodeKind::File => "file",
        NodeKind::Directory => "dir",
        NodeKind::Symlink => "symlink",
        NodeKind::BlockDevice => "dev",
        NodeKind::CharacterDevice => "chardev",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
        NodeKind::Other(word) => word,
    };
    serde_json::json!({
        "path": path.to_string_lossy(),
        "type": kind,
        "mode": format!("{:04o}", node.mode),
        "uid": node.uid,
        "gid": node.gid,
        "size": node.size,
        "mtime": node.modified,
    })
}

/// Names may hold anything; a terminal must not obey it, and a line stays a line.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let escaped = character.is_control().then(|| character.escape_default());
            let plain = escaped.is_none().then_some(character);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

fn restore(
    reader: &Reader,
    snapshot: &str,
    target: &Path,
    options: &RestoreOptions,
    verify: bool,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let tree = find(reader, snapshot)?;
    let report = reader.restore(&tree, target, options, terminal).map_err(failure)?;
    if verify {
        let differences = reader.verify(&tree, target, terminal).map_err(failure)?;
        // With --overwrite, other files may lie beside those of the snapshot.
        let real = differences
            .iter()
            .filter(|found| !options.into_existing || found.what != "it is not in the backup");
        let lines: Vec<String> =
            real.map(|found| format!("\n  {}: {}", found.path.display(), found.what)).collect();
        if !lines.is_empty() {
            return Err(Failure::new(format!(
                "what was restored differs from the snapshot:{}",
                lines.concat()
            )));
        }
    }
    terminal.clear();
    terminal.say(&format!(
        "{} files and {} directories restored, {} bytes{}",
        report.files,
        report.directories,
        report.bytes,
        if verify { ", verified" } else { "" }
    ));
    let lost = report.skipped.iter().chain(&report.warnings);
    let lines: Vec<String> =
        lost.map(|(path, why)| format!("\n  {}: {why}", path.display())).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::partial(format!("not everything could be restored:{}", lines.concat())))
}

fn check(
    repository: &Repository,
    options: &CheckOptions,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let report = repository.check(options, terminal).map_err(failure)?;
    terminal.clear();
    for note in &report.notes {
        terminal.say(&format!("note: {note}"));
    }
    for problem in &report.problems {
        put(&printable(problem))?;
    }
    if !report.problems.is_empty() {
        return Err(Failure::new(format!("{} problems were found", report.problems.len())));
    }
    terminal.say(&format!(
        "no damage: {} snapshots, {} packs, {} blobs{}",
        report.snapshots,
        report.packs,
        report.blobs,
        if options.read_data { ", every byte verified" } else { "" }
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{e4}"), "a\\u{1b}[2Jb\\nc\u{e4}");
    }
}
