//! Restores: complete, into empty places only, never outside their target.

use crate::support::{Place, assert_same, build_everything};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use stillpoint_model::progress::Silent;
use stillpoint_repository::{
    BackupOptions, BlobId, Repository, RepositoryError, RestoreOptions, RestoreReport,
};

/// Backs up a directory; the tree of its entries.
fn backup(repository: &Repository, source: &Path) -> BlobId {
    let options = BackupOptions { read_all: true, ..BackupOptions::default() };
    let report = repository.backup(&[source.to_owned()], &options, &Silent).unwrap();
    assert_eq!(report.found.gaps, []);
    let reader = repository.reader().unwrap();
    let (_, snapshot) = reader.find_snapshot(&report.snapshot.to_hex()).unwrap();
    reader.lookup(&snapshot.tree, source.to_str().unwrap()).unwrap().subtree.unwrap()
}

fn restore(
    repository: &Repository,
    tree: &BlobId,
    target: &Path,
    into_existing: bool,
) -> Result<RestoreReport, RepositoryError> {
    let options = RestoreOptions { into_existing };
    repository.reader().unwrap().restore(tree, target, &options, &Silent)
}

#[test]
fn everything_comes_back_with_its_metadata_and_its_holes() {
    let place = Place::new();
    let source = place.path("source");
    build_everything(&source);
    fs::remove_file(source.join("socket")).unwrap();
    let repository = place.init();
    let tree = backup(&repository, &source);
    let target = place.path("not/there/yet");
    let report = restore(&repository, &tree, &target, false).unwrap();
    assert_eq!(report.warnings, []);
    assert_same(&target, &source);
    assert_eq!(
        xattr::get(target.join("hello.txt"), "user.test").unwrap().unwrap(),
        b"value\x00\xff"
    );
    assert!(xattr::get(target.join("sub/deeper"), "user.empty").unwrap().is_some());
    let inode = |path: &str| fs::metadata(target.join(path)).unwrap().ino();
    assert_eq!(inode("hello.txt"), inode("sub/hard"));
    let sparse = fs::metadata(target.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "{} blocks", sparse.blocks());
}

#[test]
fn a_target_that_is_not_empty_is_refused_untouched_unless_asked_for() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "from the backup").unwrap();
    let repository = place.init();
    let tree = backup(&repository, &source);
    let target = place.path("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("file"), "mine").unwrap();
    fs::write(target.join("other"), "mine").unwrap();
    assert!(matches!(
        restore(&repository, &tree, &target, false),
        Err(RepositoryError::Refused(_))
    ));
    assert_eq!(fs::read(target.join("file")).unwrap(), b"mine");
    restore(&repository, &tree, &target, true).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"from the backup");
    assert_eq!(fs::read(target.join("other")).unwrap(), b"mine");
}

#[test]
fn links_in_the_way_are_replaced_and_never_followed() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("directory")).unwrap();
    fs::write(source.join("directory/file"), "from the backup").unwrap();
    fs::write(source.join("plain"), "from the backup").unwrap();
    let repository = place.init();
    let tree = backup(&repository, &source);
    let (target, outside) = (place.path("target"), place.path("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    symlink(&outside, target.join("directory")).unwrap();
    symlink(outside.join("file"), target.join("plain")).unwrap();
    restore(&repository, &tree, &target, true).unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(target.join("directory/file")).unwrap(), b"from the backup");
    assert!(!target.join("plain").is_symlink());
}

#[test]
fn verify_names_every_difference() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for name in ["same", "content", "size", "gone", "mode", "kind", "sub/inner"] {
        fs::write(source.join(name), "1234").unwrap();
    }
    symlink("here", source.join("link")).unwrap();
    let repository = place.init();
    let tree = backup(&repository, &source);
    fs::write(source.join("content"), "4321").unwrap();
    fs::write(source.join("size"), "12345").unwrap();
    fs::write(source.join("sub/extra"), "").unwrap();
    fs::remove_file(source.join("gone")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(source.join("mode"), mode).unwrap();
    fs::remove_file(source.join("kind")).unwrap();
    fs::create_dir(source.join("kind")).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    symlink("there", source.join("link")).unwrap();
    let differences = repository.reader().unwrap().verify(&tree, &source, &Silent).unwrap();
    let mut paths: Vec<&str> =
        differences.iter().map(|difference| difference.path.to_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["content", "gone", "kind", "link", "mode", "size", "sub/extra"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_directory_survives_backup_and_restore(
        files in proptest::collection::vec(
            (
                proptest::collection::vec("[^/\0]{1,12}", 1..4),
                proptest::collection::vec(any::<u8>(), 0..2000),
                0_usize..1500,
                0_u32..0o10000,
            ),
            0..12
        )
    ) {
        let place = Place::new();
        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        for (names, content, repeat, mode) in files {
            let path = names.iter().fold(source.clone(), |path, name| path.join(format!("_{name}")));
            // A name that is a file already, or too long, is passed over.
            if fs::create_dir_all(path.parent().unwrap()).is_ok()
                && !path.exists()
                && fs::write(&path, content.repeat(repeat)).is_ok()
            {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(mode | 0o400);
                fs::set_permissions(&path, mode).unwrap();
            }
        }
        let repository = place.init();
        let tree = backup(&repository, &source);
        let target = place.path("target");
        let report = restore(&repository, &tree, &target, false).unwrap();
        prop_assert_eq!(&report.warnings, &[]);
        assert_same(&source, &target);
        let differences = repository.reader().unwrap().verify(&tree, &target, &Silent).unwrap();
        prop_assert_eq!(differences, []);
    }
}
