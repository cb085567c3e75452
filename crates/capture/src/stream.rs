//! The repository as the services' drivers see it: named streams in, named streams out.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Mutex;

use jiff::Timestamp;
use stillpoint_model::progress::Monitor;
use stillpoint_repository::{BlobId, Content, Node, Reader, RepositoryError, Tree, Writer};
use stillpoint_services::{Sink, Source};

/// Stores what a driver captures, and builds the directories that its paths name.
pub(crate) struct WriterSink<'a> {
    writer: &'a Writer,
    monitor: &'a dyn Monitor,
    files: Mutex<BTreeMap<String, Content>>,
}

impl<'a> WriterSink<'a> {
    pub(crate) fn new(writer: &'a Writer, monitor: &'a dyn Monitor) -> Self {
        Self { writer, monitor, files: Mutex::default() }
    }

    /// Saves the directories and returns the topmost one's tree.
    pub(crate) fn finish(self) -> Result<BlobId, RepositoryError> {
        let mut root = Directory::default();
        for (path, content) in self.files.into_inner().expect("no capture thread panicked") {
            root.insert(&path, content);
        }
        root.save(self.writer, Timestamp::now())
    }
}

impl Sink for WriterSink<'_> {
    fn write(&self, path: &str, content: &mut dyn Read) -> io::Result<u64> {
        if path.split('/').any(|name| name.is_empty() || name == "." || name == "..") {
            return Err(io::Error::other(format!("`{path}` is not a path to capture into")));
        }
        let mut counted = Watched { content, monitor: self.monitor };
        let content = self.writer.save_data(&mut counted).map_err(|error| match error {
            RepositoryError::Source(source) => source,
            other => io::Error::other(other),
        })?;
        let size = content.size;
        let mut files = self.files.lock().expect("no capture thread panicked");
        if files.insert(path.to_owned(), content).is_some() {
            return Err(io::Error::other(format!("`{path}` was captured twice")));
        }
        Ok(size)
    }

    fn stopped(&self) -> bool {
        self.monitor.cancelled()
    }
}

/// Content that is counted as it is read, until the work is cancelled.
pub(crate) struct Watched<'m, R> {
    pub(crate) content: R,
    pub(crate) monitor: &'m dyn Monitor,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.monitor.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.content.read(buffer)?;
        self.monitor.advance(count as u64);
        Ok(count)
    }
}

/// A directory that exists only in a tree.
#[derive(Default)]
struct Directory {
    files: BTreeMap<String, Content>,
    directories: BTreeMap<String, Directory>,
}

impl Directory {
    fn insert(&mut self, path: &str, content: Content) {
        match path.split_once('/') {
            Some((first, rest)) => {
                self.directories.entry(first.to_owned()).or_default().insert(rest, content);
            }
            None => {
                self.files.insert(path.to_owned(), content);
            }
        }
    }

    fn save(self, writer: &Writer, when: Timestamp) -> Result<BlobId, RepositoryError> {
        let mut nodes = Vec::new();
        for (name, content) in self.files {
            nodes.push(Node::file(&name, content, when));
        }
        for (name, directory) in self.directories {
            nodes.push(Node::directory(&name, directory.save(writer, when)?, when));
        }
        writer.save_tree(&Tree { nodes })
    }
}

/// A captured service's tree, for the driver that restores it.
pub struct TreeSource<'a> {
    reader: &'a Reader,
    files: BTreeMap<String, Vec<BlobId>>,
}

impl<'a> TreeSource<'a> {
    /// Lists every file below `tree`.
    pub fn new(reader: &'a Reader, tree: &BlobId) -> Result<Self, RepositoryError> {
        let mut files = BTreeMap::new();
        let mut pending = vec![(String::new(), *tree)];
        while let Some((prefix, id)) = pending.pop() {
            for node in reader.tree(&id)?.nodes {
                let path = format!("{prefix}{}", node.name.to_string_lossy());
                if let Some(subtree) = node.subtree {
                    pending.push((format!("{path}/"), subtree));
                } else if let Some(content) = node.content {
                    files.insert(path, content);
                }
            }
        }
        Ok(Self { reader, files })
    }
}

/// Of a part that brings its own data: there are no streams.
pub struct NoStreams;

impl Source for NoStreams {
    fn paths(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, _: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Source for TreeSource<'_> {
    fn paths(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let content = self.files.get(path).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("the backup holds no `{path}`"))
        })?;
        Ok(Box::new(self.reader.open(content)))
    }
}
