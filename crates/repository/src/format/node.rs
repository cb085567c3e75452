//! One entry of a directory: a file, a directory, a link, with all its metadata.

use super::{json, name, time};
use crate::format::snapshot::nullable;
use crate::host;
use crate::id::BlobId;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A file's content, saved: its blobs in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The blobs, in order.
    pub blobs: Vec<BlobId>,
    /// Their length together, in bytes.
    pub size: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Something that this program does not know, by the name that the tree gives it.
    Other(String),
}

impl NodeKind {
    fn word(&self) -> &str {
        match self {
            Self::File => "file",
            Self::Directory => "dir",
            Self::Symlink => "symlink",
            Self::BlockDevice => "dev",
            Self::CharacterDevice => "chardev",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Other(word) => word,
        }
    }

    fn from_word(word: String) -> Self {
        match word.as_str() {
            "file" => Self::File,
            "dir" => Self::Directory,
            "symlink" => Self::Symlink,
            "dev" => Self::BlockDevice,
            "chardev" => Self::CharacterDevice,
            "fifo" => Self::Fifo,
            "socket" => Self::Socket,
            _ => Self::Other(word),
        }
    }

    /// The kind of a file on disk.
    pub fn of(kind: FileType) -> Self {
        if kind.is_file() {
            Self::File
        } else if kind.is_dir() {
            Self::Directory
        } else if kind.is_symlink() {
            Self::Symlink
        } else if kind.is_block_device() {
            Self::BlockDevice
        } else if kind.is_char_device() {
            Self::CharacterDevice
        } else if kind.is_fifo() {
            Self::Fifo
        } else {
            Self::Socket
        }
    }

    /// The type's bits in the mode, as Go numbers them.
    fn go_mode(&self) -> u32 {
        match self {
            Self::File | Self::Other(_) => 0,
            Self::Directory => 1 << 31,
            Self::Symlink => 1 << 27,
            Self::BlockDevice => 1 << 26,
            Self::CharacterDevice => 1 << 26 | 1 << 21,
            Self::Fifo => 1 << 25,
            Self::Socket => 1 << 24,
        }
    }
}

/// Go's numbers for the three bits above the permissions, beside Unix's.
const SPECIAL: [(u32, u32); 3] = [(1 << 23, 0o4000), (1 << 22, 0o2000), (1 << 20, 0o1000)];

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedAttribute {
    /// Its name with the name space: `user.x`.
    pub name: OsString,
    /// Its value, any bytes.
    pub value: Vec<u8>,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name: any bytes but `/` and NUL.
    pub name: OsString,
    /// What it is.
    pub kind: NodeKind,
    /// Unix permissions with set-user-id, set-group-id and sticky: `0o7777` at most.
    pub mode: u32,
    /// Content last changed.
    pub modified: Timestamp,
    /// Last read. As stock clients do by default, [`Node::inspect`] sets it to `modified`, so that
    /// reading a file does not change its directory's tree.
    pub accessed: Timestamp,
    /// Content or metadata last changed.
    pub changed: Timestamp,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The owner's name; may be empty.
    pub user: String,
    /// The group's name; may be empty.
    pub group: String,
    /// Its number in its file system; with `device_id` it tells hard links.
    pub inode: u64,
    /// The number of its file system.
    pub device_id: u64,
    /// Of files: length in bytes.
    pub size: u64,
    /// How many names it has.
    pub links: u64,
    /// Of symbolic links: the target, any bytes.
    pub link_target: OsString,
    /// Extended attributes, access control lists among them.
    pub extended_attributes: Vec<ExtendedAttribute>,
    /// Of device files: the device's number.
    pub device: u64,
    /// Of files: the blobs, in order.
    pub content: Option<Vec<BlobId>>,
    /// Of directories: the tree.
    pub subtree: Option<BlobId>,
    /// What went wrong when it was saved; may be empty.
    pub error: String,
}

impl Node {
    /// What the file system says of `path`, links not followed. Content and subtree are left out.
    pub fn inspect(path: &Path) -> io::Result<Self> {
        Self::from_metadata(path, &fs::symlink_metadata(path)?)
    }

    /// The same, where the metadata is known already.
    pub(crate) fn from_metadata(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        let kind = NodeKind::of(metadata.file_type());
        let modified = time::from_file_system(metadata.mtime(), metadata.mtime_nsec());
        let is = |wanted: &[NodeKind]| wanted.contains(&kind);
        let link_target =
            if is(&[NodeKind::Symlink]) { fs::read_link(path)?.into() } else { OsString::new() };
        let extended_attributes = extended_attributes(path, &kind)?;
        let devices = [NodeKind::BlockDevice, NodeKind::CharacterDevice];
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_owned(),
            mode: metadata.mode() & 0o7777,
            modified,
            accessed: modified,
            changed: time::from_file_system(metadata.ctime(), metadata.ctime_nsec()),
            uid: metadata.uid(),
            gid: metadata.gid(),
            user: host::user_name(metadata.uid()),
            group: host::group_name(metadata.gid()),
            inode: metadata.ino(),
            device_id: metadata.dev(),
            size: if is(&[NodeKind::File]) { metadata.len() } else { 0 },
            links: if is(&[NodeKind::Directory, NodeKind::Fifo, NodeKind::Socket]) {
                0
            } else {
                metadata.nlink()
            },
            link_target,
            extended_attributes,
            device: if is(&devices) { metadata.rdev() } else { 0 },
            content: None,
            subtree: None,
            error: String::new(),
            kind,
        })
    }

    /// A file that this program made up, mode 0600.
    pub fn file(name: &str, content: Content, when: Timestamp) -> Self {
        let mut node = Self::synthetic(name, NodeKind::File, 0o600, when);
        node.links = 1;
        node.size = content.size;
        node.content = Some(content.blobs);
        node
    }

    /// A directory that this program made up, mode 0700.
    pub fn directory(name: &str, subtree: BlobId, when: Timestamp) -> Self {
        let mut node = Self::synthetic(name, NodeKind::Directory, 0o700, when);
        node.subtree = Some(subtree);
        node
    }

    fn synthetic(name: &str, kind: NodeKind, mode: u32, when: Timestamp) -> Self {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self {
            name: name.into(),
            kind,
            mode,
            modified: when,
            accessed: when,
            changed: when,
            uid,
            gid,
            user: host::user_name(uid),
            group: host::group_name(gid),
            inode: 0,
            device_id: 0,
            size: 0,
            links: 0,
            link_target: OsString::new(),
            extended_attributes: Vec::new(),
            device: 0,
            content: None,
            subtree: None,
            error: String::new(),
        }
    }

    /// The name for messages: quoted, with control characters escaped. Trees may be hostile.
    pub(crate) fn quoted_name(&self) -> String {
        format!("\"{}\"", name::quote(self.name.as_bytes()))
    }

    /// Whether the name can be one file's in one directory. A tree with other names is hostile or
    /// damaged: nothing is written under them.
    pub fn has_safe_name(&self) -> bool {
        let name = self.name.as_bytes();
        !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| matches!(b, b'/' | 0))
    }

    /// Appends the node's JSON: field order, escapes and omissions are the stock client's.
    pub(super) fn write_json(&self, out: &mut String) {
        out.push_str("{\"name\":");
        json::string(out, name::quote(self.name.as_bytes()).as_bytes());
        out.push_str(",\"type\":");
        json::string(out, self.kind.word().as_bytes());
        let mut mode = self.mode & 0o777 | self.kind.go_mode();
        for (go, unix) in SPECIAL {
            if self.mode & unix != 0 {
                mode |= go;
            }
        }
        let number = |out: &mut String, field: &str, value: u64| {
            if value != 0 {
                let _ = write!(out, ",\"{field}\":{value}");
            }
        };
        number(out, "mode", mode.into());
        for (field, when) in
            [("mtime", self.modified), ("atime", self.accessed), ("ctime", self.changed)]
        {
            let _ = write!(out, ",\"{field}\":\"{}\"", time::encode(when));
        }
        let _ = write!(out, ",\"uid\":{},\"gid\":{}", self.uid, self.gid);
        let text = |out: &mut String, field: &str, value: &[u8]| {
            if !value.is_empty() {
                let _ = write!(out, ",\"{field}\":");
                json::string(out, value);
            }
        };
        text(out, "user", self.user.as_bytes());
        text(out, "group", self.group.as_bytes());
        number(out, "inode", self.inode);
        number(out, "device_id", self.device_id);
        number(out, "size", self.size);
        number(out, "links", self.links);
        let target = self.link_target.as_bytes();
        text(out, "linktarget", target);
        if std::str::from_utf8(target).is_err() {
            // Newer stock clients' way to keep a target that is not UTF-8; older ones pass it over.
            text(out, "linktarget_raw", BASE64_STANDARD.encode(target).as_bytes());
        }
        if !self.extended_attributes.is_empty() {
            out.push_str(",\"extended_attributes\":[");
            for (place, attribute) in self.extended_attributes.iter().enumerate() {
                out.push_str(if place == 0 { "{\"name\":" } else { ",{\"name\":" });
                json::string(out, attribute.name.as_bytes());
                let _ =
                    write!(out, ",\"value\":\"{}\"}}", BASE64_STANDARD.encode(&attribute.value));
            }
            out.push(']');
        }
        number(out, "device", self.device);
        out.push_str(",\"content\":");
        match &self.content {
            None => out.push_str("null"),
            Some(blobs) => {
                out.push('[');
                for (place, blob) in blobs.iter().enumerate() {
                    let _ = write!(out, "{}\"{blob}\"", if place == 0 { "" } else { "," });
                }
                out.push(']');
            }
        }
        if let Some(subtree) = &self.subtree {
            let _ = write!(out, ",\"subtree\":\"{subtree}\"");
        }
        text(out, "error", self.error.as_bytes());
        out.push('}');
    }
}

fn extended_attributes(path: &Path, kind: &NodeKind) -> io::Result<Vec<ExtendedAttribute>> {
    // Links have none that users can set, and stock clients read none there.
    if *kind == NodeKind::Symlink {
        return Ok(Vec::new());
    }
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attributes = Vec::new();
    for name in names {
        // One that was removed in between is not there any more.
        if let Some(value) = xattr::get(path, &name)? {
            attributes.push(ExtendedAttribute { name, value });
        }
    }
    Ok(attributes)
}

/// A node as it stands in JSON. Unknown fields are passed over: newer clients write more.
#[derive(Deserialize)]
pub(super) struct RawNode {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    mode: u32,
    #[serde(default)]
    mtime: Timestamp,
    #[serde(default)]
    atime: Timestamp,
    #[serde(default)]
    ctime: Timestamp,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    user: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    device_id: u64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    links: u64,
    #[serde(default)]
    linktarget: String,
    #[serde(default)]
    linktarget_raw: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    extended_attributes: Vec<RawAttribute>,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    content: Option<Vec<BlobId>>,
    #[serde(default)]
    subtree: Option<BlobId>,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct RawAttribute {
    name: String,
    #[serde(default)]
    value: Option<String>,
}

impl TryFrom<RawNode> for Node {
    type Error = String;

    fn try_from(raw: RawNode) -> Result<Self, String> {
        let decode = |text: String| {
            BASE64_STANDARD.decode(&text).map_err(|_| format!("`{}` has bad base64", raw.name))
        };
        let name = name::unquote(&raw.name).ok_or("a name in it has a broken escape")?;
        let link_target = match raw.linktarget_raw {
            Some(text) => decode(text)?,
            None => raw.linktarget.into_bytes(),
        };
        let mut extended_attributes = Vec::with_capacity(raw.extended_attributes.len());
        for attribute in raw.extended_attributes {
            extended_attributes.push(ExtendedAttribute {
                name: attribute.name.into(),
                value: attribute.value.map(decode).transpose()?.unwrap_or_default(),
            });
        }
        let mut mode = raw.mode & 0o777;
        for (go, unix) in SPECIAL {
            if raw.mode & go != 0 {
                mode |= unix;
            }
        }
        Ok(Self {
            name: OsString::from_vec(name),
            kind: NodeKind::from_word(raw.kind),
            mode,
            modified: raw.mtime,
            accessed: raw.atime,
            changed: raw.ctime,
            uid: raw.uid,
            gid: raw.gid,
            user: raw.user,
            group: raw.group,
            inode: raw.inode,
            device_id: raw.device_id,
            size: raw.size,
            links: raw.links,
            link_target: OsString::from_vec(link_target),
            extended_attributes,
            device: raw.device,
            content: raw.content,
            subtree: raw.subtree,
            error: raw.error,
        })
    }
}

/// Two nodes' order in a tree: by the bytes of their names.
pub(super) fn by_name(a: &Node, b: &Node) -> std::cmp::Ordering {
    a.name.as_bytes().cmp(b.name.as_bytes())
}
