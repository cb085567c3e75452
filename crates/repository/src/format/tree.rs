//! A directory's entries as one blob. Its name is the hash of its text, so the text must be what a
//! stock client would write for the same entries, to the byte.

use super::node::{Node, RawNode, by_name};
use serde::Deserialize;

/// A directory: its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries. Sorted by name when saved.
    pub nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct RawTree {
    #[serde(default, deserialize_with = "super::snapshot::nullable")]
    nodes: Vec<RawNode>,
}

impl Tree {
    /// The text; the reason if the entries cannot be one directory's.
    pub(crate) fn encode(&self) -> Result<String, String> {
        let mut sorted: Vec<&Node> = self.nodes.iter().collect();
        sorted.sort_by(|a, b| by_name(a, b));
        if let Some(unsafe_name) = sorted.iter().find(|node| !node.has_safe_name()) {
            return Err(format!("{} cannot be a file's name", unsafe_name.quoted_name()));
        }
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(format!("it has two entries named {}", pair[0].quoted_name()));
        }
        let mut out = String::from("{\"nodes\":[");
        for (place, node) in sorted.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            node.write_json(&mut out);
        }
        out.push_str("]}\n");
        Ok(out)
    }

    /// The entries that a text lists; the reason if it is none.
    pub(crate) fn decode(text: &[u8]) -> Result<Self, String> {
        let raw: RawTree = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let nodes = raw.nodes.into_iter().map(Node::try_from).collect::<Result<_, _>>()?;
        Ok(Self { nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::node::{Content, ExtendedAttribute, NodeKind};
    use crate::id::BlobId;
    use jiff::Timestamp;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    // As stock restic wrote it.
    const STOCK: &str = concat!(
        r#"{"nodes":[{"name":"bad\\xff\\xfename\\\"q\\\\","type":"file","mode":493,"#,
        r#""mtime":"2026-11-22T23:16:23.279736292Z","atime":"2026-11-22T23:16:23.279736292Z","#,
        r#""ctime":"2026-11-22T23:16:23.279736292Z","uid":0,"gid":0,"user":"root","group":"root","#,
        r#""inode":10018936,"device_id":65024,"links":1,"content":[]},"#,
        r#"{"name":"dev","type":"chardev","mode":69206436,"mtime":"2026-11-22T23:16:23.155736287Z","#,
        r#""atime":"2026-11-22T23:16:23.155736287Z","ctime":"2026-11-22T23:16:23.155736287Z","#,
        r#""uid":0,"gid":0,"user":"root","group":"root","inode":10018934,"device_id":65024,"#,
        r#""links":1,"device":259,"content":null},"#,
        r#"{"name":"emptydir","type":"dir","mode":2151678445,"mtime":"2026-11-22T23:16:23Z","#,
        r#""atime":"2026-11-22T23:16:23Z","ctime":"2026-11-22T23:16:23.1Z","uid":0,"gid":0,"#,
        r#""inode":10018928,"device_id":65024,"content":null,"#,
        r#""subtree":"ac08ce34ba4f8123618661bef2425f7028ffb9ac740578a3ee88684d2523fee8"},"#,
        r#"{"name":"hard","type":"file","mode":420,"mtime":"1965-01-01T00:00:00.1Z","#,
        r#""atime":"1965-01-01T00:00:00.1Z","ctime":"2026-11-22T23:16:23.295736293Z","#,
        r#""uid":12345,"gid":54321,"inode":10018929,"device_id":65024,"size":3,"links":2,"#,
        r#""extended_attributes":[{"name":"user.foo","value":"YmFyAP8="},"#,
        r#"{"name":"user.empty","value":""}],"#,
        r#""content":["98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"]},"#,
        r#"{"name":"weird\u003c\u0026\u003e","type":"symlink","mode":134218239,"#,
        r#""mtime":"2026-11-22T23:16:23.1Z","atime":"2026-11-22T23:16:23.1Z","#,
        r#""ctime":"2026-11-22T23:16:23.1Z","uid":0,"gid":0,"inode":1,"device_id":65024,"links":1,"#,
        r#""linktarget":"a\u003c\u0026\u003eb","content":null}]}"#,
        "\n"
    );

    #[test]
    fn a_stock_tree_is_written_again_to_the_byte() {
        let tree = Tree::decode(STOCK.as_bytes()).unwrap();
        assert_eq!(tree.encode().unwrap(), STOCK);
        assert_eq!(tree.nodes[2].mode, 0o2755);
        assert_eq!(tree.nodes[4].kind, NodeKind::Symlink);
    }

    #[test]
    fn an_empty_tree_is_the_stock_clients() {
        let id = BlobId::of(Tree::default().encode().unwrap().as_bytes());
        assert_eq!(id.short(), "ac08ce34", "as the tree of an empty directory above");
    }

    #[test]
    fn entries_are_sorted_and_names_that_are_twice_or_no_names_are_refused() {
        let named = |names: &[&str]| Tree {
            nodes: names
                .iter()
                .map(|name| Node::file(name, Content::default(), Timestamp::UNIX_EPOCH))
                .collect(),
        };
        let text = named(&["b", "a"]).encode().unwrap();
        assert!(text.find("\"a\"") < text.find("\"b\""));
        assert!(named(&["a", "a"]).encode().is_err());
        for bad in ["", ".", "..", "a/b", "a\0"] {
            assert!(named(&[bad]).encode().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_target_that_is_not_utf_8_is_kept() {
        let mut node = Node::file("x", Content::default(), Timestamp::UNIX_EPOCH);
        node.kind = NodeKind::Symlink;
        node.content = None;
        node.link_target = OsString::from_vec(b"to\xff".to_vec());
        let tree = Tree { nodes: vec![node] };
        assert_eq!(Tree::decode(tree.encode().unwrap().as_bytes()), Ok(tree));
    }

    proptest! {
        #[test]
        fn every_tree_survives(
            names in proptest::collection::btree_set("[^/\0]{1,8}", 0..5),
            mode in 0_u32..0o10000,
            seconds in -60_000_000_000_i64..250_000_000_000,
            nanoseconds in 0_i64..1_000_000_000,
            value in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let nodes = names.iter().filter(|name| !matches!(name.as_str(), "." | "..")).map(|name| {
                let when = crate::format::time::from_file_system(seconds, nanoseconds);
                let mut node = Node::file(name, Content::default(), when);
                node.mode = mode;
                node.extended_attributes =
                    vec![ExtendedAttribute { name: "user.x".into(), value: value.clone() }];
                node
            });
            let tree = Tree { nodes: nodes.collect() };
            prop_assert_eq!(Tree::decode(tree.encode().unwrap().as_bytes()), Ok(tree));
        }

        #[test]
        fn no_text_makes_decoding_panic(text in any::<Vec<u8>>(), inside in "[ -~]{0,30}") {
            let _ = Tree::decode(&text);
            let _ = Tree::decode(format!("{{\"nodes\":[{inside}]}}").as_bytes());
        }
    }
}
