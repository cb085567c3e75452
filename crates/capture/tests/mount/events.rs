//! What the kernel's events must not miss.

use super::{Mapped, Scene, Taken, open, write};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use stillpoint_capture::Participant;
use stillpoint_capture::mount::{TRACKED_BY, Tracking, tracking};
use stillpoint_model::progress::Silent;
use stillpoint_repository::{Snapshot, WriterOptions};

/// A scene with a few directories and files that have been there for long enough to be settled.
fn settled() -> Scene {
    let scene = Scene::new();
    let mount = scene.mount();
    for directory in ["a", "a/deep", "b"] {
        fs::create_dir_all(mount.join(directory)).unwrap();
        for number in 0..5 {
            write(&mount.join(directory).join(format!("f{number}")), format!("content {number}"));
        }
    }
    scene
}

/// What is taken is what is there.
fn assert_marked_after(scene: &Scene, steps: &mut [&mut dyn FnMut()]) {
    let taken = marked_after(scene, steps);
    scene.assert_same(&taken);
    match tracking(&scene.mount()) {
        Tracking::Events => assert_eq!(tracked_by(&taken), "events"),
        // Elsewhere than as root on the machine itself the kernel tells nothing.
        Tracking::Walk { .. } => assert!(tracked_by(&taken).starts_with("walk: ")),
    }
}

fn tracked_by(taken: &Taken) -> &str {
    &taken.account.part.as_ref().unwrap().0.marker.values[TRACKED_BY]
}

/// Prepare; then one of `steps` before each mark; then capture.
fn marked_after(scene: &Scene, steps: &mut [&mut dyn FnMut()]) -> Taken {
    let writer = scene.repository.writer(WriterOptions::default()).unwrap();
    let mut participant = scene.participant(&["*.tmp"]);
    participant.prepare(&writer, &Silent).unwrap();
    for step in steps {
        step();
        participant.mark().unwrap();
    }
    participant.capture(&writer, &Silent).unwrap();
    let account = participant.account();
    let tree = account.part.as_ref().unwrap().1.subtree.unwrap();
    let now = jiff::Timestamp::now();
    writer.publish(Snapshot::new(tree, vec!["/m".to_owned()], vec![], now)).unwrap();
    Taken { tree, account }
}

#[test]
fn a_file_that_was_opened_before_and_is_written_to_through_that_is_seen() {
    let scene = settled();
    let mut file = OpenOptions::new().append(true).open(scene.mount().join("a/f1")).unwrap();
    assert_marked_after(&scene, &mut [&mut || file.write_all(b"more").unwrap()]);
}

#[test]
fn a_store_through_a_mapping_that_was_made_since_is_seen() {
    let scene = settled();
    let path = scene.mount().join("a/deep/f2");
    let mut mapped = None;
    assert_marked_after(
        &scene,
        &mut [&mut || {
            let mut mapping = Mapped::open(&path);
            mapping.store(3, b'!');
            mapped = Some(mapping);
        }],
    );
    drop(mapped);
}

#[test]
fn a_change_by_a_name_outside_of_the_mount_is_seen() {
    let scene = settled();
    let outside = scene.top.path().join("outside");
    fs::hard_link(scene.mount().join("b/f3"), &outside).unwrap();
    let taken = marked_after(&scene, &mut [&mut || open(&outside).write_all(b"CHANGED").unwrap()]);
    // A name outside cannot come back.
    fs::remove_file(&outside).unwrap();
    scene.assert_same(&taken);
}

#[test]
fn a_name_that_is_given_or_taken_outside_changes_the_count_of_names() {
    let scene = settled();
    let outside = scene.top.path().join("outside");
    let inside = scene.mount().join("b/f3");
    assert_marked_after(
        &scene,
        &mut [&mut || fs::hard_link(&inside, &outside).unwrap(), &mut || {
            fs::remove_file(&outside).unwrap();
        }],
    );
}

#[test]
fn what_is_moved_in_out_and_across_is_where_it_is_now() {
    let scene = settled();
    let (mount, top) = (scene.mount(), scene.top.path());
    fs::create_dir_all(top.join("elsewhere/x/y")).unwrap();
    write(&top.join("elsewhere/x/y/file"), "moved in");
    assert_marked_after(
        &scene,
        &mut [&mut || {
            fs::rename(top.join("elsewhere"), mount.join("b/in")).unwrap();
            fs::rename(mount.join("a/deep"), mount.join("b/deep")).unwrap();
            write(&mount.join("b/deep/f0"), "written after the move");
            fs::rename(mount.join("a/f1"), top.join("out")).unwrap();
            fs::rename(mount.join("a/f2"), mount.join("b/f2")).unwrap();
            fs::remove_file(mount.join("a/f3")).unwrap();
            fs::create_dir(mount.join("a/f3")).unwrap();
            write(&mount.join("a/f3/now-a-directory"), "");
            write(&mount.join("a/left-out.tmp"), "");
            fs::remove_file(mount.join("a/left-out.tmp")).unwrap();
            fs::set_permissions(mount.join("a"), fs::Permissions::from_mode(0o710)).unwrap();
        }],
    );
}

#[test]
fn a_second_mark_is_as_things_are_then() {
    let scene = settled();
    let mount = scene.mount();
    assert_marked_after(
        &scene,
        &mut [
            &mut || {
                write(&mount.join("a/new"), "first");
                write(&mount.join("a/f1"), "first");
                fs::remove_file(mount.join("a/f2")).unwrap();
            },
            &mut || {
                write(&mount.join("a/new"), "the second time");
                write(&mount.join("a/f2"), "again");
                fs::remove_file(mount.join("a/f1")).unwrap();
            },
        ],
    );
}

#[test]
fn a_mark_after_one_that_found_new_directories_walks() {
    let scene = settled();
    let new = scene.mount().join("a/new");
    let taken = marked_after(
        &scene,
        &mut [
            &mut || {
                fs::create_dir(&new).unwrap();
                write(&new.join("x"), "x");
            },
            &mut || write(&new.join("y"), "y"),
        ],
    );
    scene.assert_same(&taken);
    assert!(tracked_by(&taken).starts_with("walk: "), "{}", tracked_by(&taken));
}

#[test]
fn the_counter_moves_with_what_is_new_in_the_mount() {
    let scene = settled();
    let writer = scene.repository.writer(WriterOptions::default()).unwrap();
    let mut participant = scene.participant(&[]);
    participant.prepare(&writer, &Silent).unwrap();
    write(&scene.mount().join("a/new"), "new");
    let before = participant.counter().unwrap().expect("it is watched");
    assert_eq!(participant.counter().unwrap().as_ref(), Some(&before));
    open(&scene.mount().join("a/new")).write_all(b"NEW").unwrap();
    assert_ne!(participant.counter().unwrap(), Some(before));
    drop(participant);
    writer.abandon().unwrap();
}
