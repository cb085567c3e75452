//! The MariaDB driver: everything that a database can hold comes back; what a dump cannot carry
//! is named, and what cannot be restored is refused.

mod common;
#[path = "common/mariadb.rs"]
mod mariadb_server;

use common::{capture, loaded, restore, step, told};
use mariadb_server::{Server, captured};
use mysql::prelude::Queryable;
use stillpoint_services::Driver;
use stillpoint_services::mariadb::{Mariadb, MariadbOptions};

/// One table for each thing that a dump and a restore may get wrong.
const EVERYTHING: &[&str] = &[
    "CREATE TABLE numbers (id INT PRIMARY KEY AUTO_INCREMENT, b BIT(12), f FLOAT, d DOUBLE, \
     n DECIMAL(30,10), u BIGINT UNSIGNED, z INT(5) ZEROFILL) AUTO_INCREMENT = 500",
    "INSERT INTO numbers (b, f, d, n, u, z) VALUES (b'101010101010', 1.5, 0.1, \
     12345678901234567890.0123456789, 18446744073709551615, 7), \
     (NULL, NULL, 2.2250738585072014e-308, NULL, 0, NULL), (0, -3, 1.7976931348623157e308, 0, 1, 0)",
    "CREATE TABLE times (d DATE, t DATETIME(6), s TIMESTAMP(3) NULL, h TIME(2), y YEAR)",
    "SET SESSION sql_mode = ''",
    "INSERT INTO times VALUES ('0000-00-00', '0000-00-00 00:00:00', NULL, '-838:59:58.99', 0), \
     ('2024-02-30', '2024-12-31 23:59:59.999999', '2024-03-31 02:30:00.123', '12:00', 2155)",
    "CREATE TABLE texts (a VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_german1_ci, \
     b TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, c CHAR(5) CHARACTER SET ucs2, \
     j JSON, e ENUM('x','ä'), s SET('p','q','r'), i INET6, u UUID)",
    "INSERT INTO texts VALUES ('Grüße', '𝄞 \\0 \\' \\\" \\\\ \\n \\r \\Z \\t', 'ж', '{\"a\": [1, \"é\"]}', \
     'ä', 'p,r', '::1', '123e4567-e89b-12d3-a456-426655440000'), ('', '', '', NULL, NULL, '', NULL, NULL)",
    "CREATE TABLE bytes (id INT PRIMARY KEY, b BLOB, v VARBINARY(300), f BINARY(8))",
    "INSERT INTO bytes VALUES (1, UNHEX('00FF270A0D5C22801A'), '', 'a'), (2, '', NULL, '')",
    "CREATE TABLE places (id INT PRIMARY KEY, g GEOMETRY NOT NULL, SPATIAL INDEX (g))",
    "INSERT INTO places VALUES (1, ST_GeomFromText('POINT(1 2)')), \
     (2, ST_GeomFromText('POLYGON((0 0,0 3,3 3,0 0))'))",
    "CREATE TABLE words (id INT PRIMARY KEY, t TEXT, FULLTEXT (t))",
    "INSERT INTO words VALUES (1, 'the quick brown fox'), (2, 'lazy dogs')",
    "CREATE TABLE computed (a INT, v INT AS (a * 2) VIRTUAL, p INT AS (a + 1) PERSISTENT, \
     hidden INT INVISIBLE DEFAULT 3, CHECK (a > 0))",
    "INSERT INTO computed (a, hidden) VALUES (1, 8), (2, NULL)",
    "CREATE TABLE packed (a INT) ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8 COMMENT='it''s `odd`; 100%'",
    "CREATE TABLE empty (a INT PRIMARY KEY, b INT, UNIQUE (b)) COLLATE utf8mb4_czech_ci",
    "CREATE TABLE `odd ``name` (`a-b``c` INT PRIMARY KEY, `ü ж` INT)",
    "INSERT INTO `odd ``name` VALUES (1, 2)",
    "CREATE TABLE `-- x; #y` (`select` INT)",
    "CREATE TABLE parts (id INT, y INT) PARTITION BY LIST (y) SUBPARTITION BY HASH (id) \
     SUBPARTITIONS 2 (PARTITION old VALUES IN (1, 2), PARTITION new VALUES IN (3))",
    "INSERT INTO parts VALUES (1, 1), (2, 2), (3, 3)",
    "CREATE TABLE parent (id INT PRIMARY KEY)",
    "CREATE TABLE a_child (id INT, p INT, up INT, KEY (id), FOREIGN KEY (p) REFERENCES parent (id) \
     ON DELETE CASCADE, CONSTRAINT named FOREIGN KEY (up) REFERENCES a_child (id))",
    "INSERT INTO parent VALUES (1)",
    "INSERT INTO a_child VALUES (1, 1, NULL)",
    "CREATE TABLE history (x INT) WITH SYSTEM VERSIONING",
    "INSERT INTO history VALUES (1), (5)",
    "UPDATE history SET x = 2 WHERE x = 1",
    "DELETE FROM history WHERE x = 5",
    "CREATE SEQUENCE seq START WITH 10 INCREMENT BY 5 CACHE 1 CYCLE",
    "SELECT NEXTVAL(seq)",
    "CREATE TABLE by_sequence (id INT PRIMARY KEY DEFAULT NEXTVAL(seq), a INT)",
    "INSERT INTO by_sequence (a) VALUES (1), (2)",
    "CREATE TABLE aria (a INT) ENGINE=Aria TRANSACTIONAL=1",
    "INSERT INTO aria VALUES (1)",
    "CREATE VIEW z_view AS SELECT twice(id) AS id FROM parent",
    "CREATE VIEW `a view` AS SELECT id FROM z_view",
    "CREATE VIEW checked AS SELECT id FROM parent WHERE id > 0 WITH CHECK OPTION",
];

const OBJECTS: &[&str] = &[
    "CREATE FUNCTION twice (n INT) RETURNS INT DETERMINISTIC RETURN n * 2",
    "CREATE DEFINER=gone@'%' PROCEDURE fill (OUT n INT) SQL SECURITY INVOKER BEGIN \
     DECLARE EXIT HANDLER FOR SQLEXCEPTION SET n = -1; SET n = 'ä; $$ //' <> ''; END",
    "CREATE TRIGGER second BEFORE INSERT ON parent FOR EACH ROW SET @order = CONCAT(@order, '2')",
    "CREATE DEFINER=root@localhost TRIGGER shop.first BEFORE INSERT ON shop.parent FOR EACH ROW \
     PRECEDES second SET @order = CONCAT(@order, '1')",
    "SET SESSION time_zone = '+05:00'",
    "CREATE EVENT daily ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 03:00:00' ENDS '2031-01-01 03:00:00' \
     COMMENT 'ä' DO DELETE FROM aria WHERE a < 0",
    "CREATE EVENT off ON SCHEDULE EVERY 1 HOUR DISABLE DO DELETE FROM aria",
];

fn fill(server: &Server, statements: &[&str]) {
    let mut session = server.root();
    session.query_drop("USE shop").unwrap();
    for statement in statements {
        session.query_drop(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
}

/// Everything that can be asked for about a database, but times of creation.
fn described(server: &Server) -> Vec<String> {
    let mut session = server.root();
    session.query_drop("USE shop").unwrap();
    session.query_drop("SET time_zone = '+00:00'").unwrap();
    let rows = |session: &mut mysql::Conn, question: &str| -> Vec<Vec<String>> {
        let found: Vec<mysql::Row> =
            session.query(question).unwrap_or_else(|e| panic!("{question}: {e}"));
        found
            .into_iter()
            .map(|row| row.unwrap().iter().map(|v| v.as_sql(false)).collect())
            .collect()
    };
    let mut all = Vec::new();
    for name in rows(&mut session, "SHOW FULL TABLES") {
        let (plain, kind) = (name[0].trim_matches('\'').to_owned(), name[1].as_str());
        let quoted = format!("`{}`", plain.replace('`', "``"));
        all.push(format!("{:?}", rows(&mut session, &format!("SHOW CREATE TABLE {quoted}"))));
        let past = if kind.contains("VERSIONED") { ", row_start, row_end" } else { "" };
        let history = if past.is_empty() { "" } else { " FOR SYSTEM_TIME ALL" };
        if kind != "'SEQUENCE'" {
            let mut content = rows(&mut session, &format!("SELECT *{past} FROM {quoted}{history}"));
            content.sort();
            all.push(format!("{plain}: {content:?}"));
        }
    }
    for question in [
        "SELECT trigger_name, event_object_table, action_order, action_statement, definer, sql_mode \
         FROM information_schema.triggers WHERE trigger_schema = 'shop' ORDER BY 1",
        "SELECT routine_name, routine_definition, definer, sql_mode, security_type, collation_connection \
         FROM information_schema.routines WHERE routine_schema = 'shop' ORDER BY 1",
        "SELECT event_name, event_definition, definer, status, starts, ends, time_zone, event_comment \
         FROM information_schema.events WHERE event_schema = 'shop' ORDER BY 1",
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata \
         WHERE schema_name = 'shop'",
        "SELECT hidden FROM computed ORDER BY a",
        "SELECT id FROM words WHERE MATCH (t) AGAINST ('fox')",
    ] {
        all.push(format!("{:?}", rows(&mut session, question)));
    }
    all
}

#[test]
fn everything_that_a_database_holds_comes_back() {
    let server = Server::start();
    server.sql(
        "GRANT SET USER ON *.* TO keeper@localhost; ALTER DATABASE shop COLLATE latin1_swedish_ci",
    );
    fill(&server, &OBJECTS[..1]);
    fill(&server, EVERYTHING);
    fill(&server, &OBJECTS[1..]);
    let before = described(&server);
    let (memory, gaps) = captured(&server.driver());
    assert_eq!(gaps, []);

    // Over a live database that is gone.
    server.sql("DROP DATABASE shop");
    let said = told(&server.driver().restore().plan("t0ken", &memory).unwrap_err());
    let (_, hint) = said.split_once("(hint: ").unwrap();
    assert_eq!(hint, "CREATE DATABASE IF NOT EXISTS `shop`; CREATE SEQUENCE `shop`.`seq`)");
    server.sql(hint.trim_end_matches(')'));
    restore(&server.driver(), &memory);
    let after = described(&server);
    for (after, before) in after.iter().zip(&before) {
        assert_eq!(after, before);
    }
    assert_eq!(after.len(), before.len());
    // A number that was given out is not given out again, and foreign keys lead where they should.
    fill(
        &server,
        &[
            "SET @order = ''",
            "INSERT INTO numbers (u) VALUES (1)",
            "INSERT INTO by_sequence (a) VALUES (3)",
            "DELETE FROM parent",
        ],
    );
    assert_eq!(server.ask("SELECT MAX(id) FROM shop.numbers"), "503");
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.by_sequence"), "3");
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.a_child"), "0");

    // Over a live one that is another: tables, views and routines have changed names and kinds.
    fill(
        &server,
        &[
            "DROP VIEW z_view",
            "DROP VIEW `a view`",
            "CREATE TABLE z_view (a INT)",
            "DROP TABLE empty",
            "CREATE VIEW empty AS SELECT 1",
            "DROP FUNCTION twice",
            "CREATE PROCEDURE twice () SELECT 1",
            "CREATE FUNCTION only_now () RETURNS INT RETURN 1",
            "DROP EVENT daily",
            "CREATE TABLE only_now (a INT)",
            "INSERT INTO only_now VALUES (1)",
            "CREATE TRIGGER t AFTER INSERT ON only_now FOR EACH ROW SET @x = 1",
            "ALTER DATABASE shop COLLATE utf8mb4_bin",
        ],
    );
    let changed = described(&server);
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    step("swap back", steps.swap_back(&aside));
    assert_eq!(described(&server), changed);
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert_eq!(described(&server), before);
    assert_eq!(server.left(), "0");
}

#[test]
fn grants_stay_also_those_on_routines() {
    let server = Server::start();
    server.sql("GRANT SET USER ON *.* TO keeper@localhost; CREATE USER app@localhost; USE shop; \
        CREATE TABLE t (n INT); CREATE PROCEDURE same () SELECT 1; CREATE PROCEDURE other () SELECT 1; \
        CREATE VIEW v AS SELECT n FROM t; GRANT SELECT (n), UPDATE ON shop.t TO app@localhost; \
        GRANT SELECT ON shop.v TO app@localhost; GRANT INSERT ON shop.* TO app@localhost; \
        GRANT EXECUTE ON PROCEDURE shop.same TO app@localhost; GRANT EXECUTE ON PROCEDURE shop.other TO app@localhost");
    let (memory, _) = captured(&server.driver());
    server.sql("CREATE OR REPLACE PROCEDURE shop.other () SELECT 2; CREATE PROCEDURE shop.later () SELECT 3; \
        GRANT EXECUTE ON PROCEDURE shop.later TO app@localhost");
    let grants = || -> Vec<String> {
        let mut grants: Vec<String> = server.root().query("SHOW GRANTS FOR app@localhost").unwrap();
        grants.sort();
        grants
    };
    let before = grants();
    let mut steps = server.driver().restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    assert_eq!(grants(), before);
    step("swap back", steps.swap_back(&aside));
    assert_eq!(grants(), before, "also on what the captured state does not have");
    step("swap", steps.swap(&aside));
    step("finish", steps.finish(&aside));
    assert_eq!(grants().len(), before.len() - 1, "less the one on what is gone");
    assert_eq!(server.ask("SELECT routine_definition FROM information_schema.routines WHERE routine_name = 'other'"), "SELECT 1");
}

#[test]
fn an_empty_database_comes_back_empty() {
    let server = Server::start();
    let (memory, _) = captured(&server.driver());
    server.sql("CREATE TABLE shop.t (n INT)");
    restore(&server.driver(), &memory);
    assert_eq!(
        server.ask("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'shop'"),
        "0"
    );
    server.sql("DROP DATABASE shop");
    restore(&server.driver(), &memory);
    assert_eq!(server.left(), "0");
    server.sql("CREATE TABLE shop.t (n INT)");
}

/// `shop` and `ware-haus`, whose views know each other.
fn two(server: &Server) -> Mariadb {
    server.sql("GRANT SET USER ON *.* TO keeper@localhost; CREATE DATABASE `ware-haus`; \
        GRANT ALL ON `ware-haus`.* TO keeper@localhost; CREATE TABLE shop.t (n INT PRIMARY KEY); \
        CREATE TABLE `ware-haus`.t (n INT PRIMARY KEY); INSERT INTO shop.t VALUES (1); \
        INSERT INTO `ware-haus`.t VALUES (2); \
        CREATE VIEW shop.v AS SELECT n FROM `ware-haus`.t; CREATE VIEW `ware-haus`.v AS SELECT n FROM shop.v");
    let databases = vec!["shop".to_owned(), "ware-haus".to_owned()];
    Mariadb::new(MariadbOptions { databases, ..server.options() }).unwrap()
}

#[test]
fn several_databases_come_back_together_with_views_across_them() {
    let server = Server::start();
    let driver = two(&server);
    let (memory, gaps) = captured(&driver);
    assert_eq!(gaps, []);
    server.sql("UPDATE shop.t SET n = 8; UPDATE `ware-haus`.t SET n = 9");
    let mut steps = driver.restore();
    let aside = loaded(steps.as_mut(), &memory);
    step("swap", steps.swap(&aside));
    step("swap back", steps.swap_back(&aside));
    assert_eq!(
        server.ask("SELECT CONCAT((SELECT n FROM shop.t), (SELECT n FROM `ware-haus`.v))"),
        "89"
    );
    step("discard", steps.discard(&aside));
    server.sql("DROP DATABASE shop; DROP DATABASE `ware-haus`");
    restore(&driver, &memory);
    assert_eq!(
        server.ask("SELECT CONCAT((SELECT n FROM shop.t), (SELECT n FROM `ware-haus`.v))"),
        "12"
    );
    assert_eq!(server.left(), "0");
}

#[test]
fn a_foreign_key_between_databases_is_a_gap_and_forbids_a_restore() {
    let server = Server::start();
    let driver = two(&server);
    let (without, _) = captured(&driver);
    server.sql("CREATE TABLE `ware-haus`.c (n INT, FOREIGN KEY (n) REFERENCES shop.t (n))");
    let (memory, gaps) = captured(&driver);
    assert!(gaps[0].0.contains("foreign key ware@002dhaus/c -> shop/t"), "{gaps:?}");
    for memory in [&without, &memory] {
        let said = told(&driver.restore().plan("t0ken", memory).unwrap_err());
        assert!(said.contains("leads from one database to another"), "{said}");
    }
    server.sql("DROP TABLE `ware-haus`.c");
    assert!(driver.restore().plan("t0ken", &memory).is_err());
    restore(&driver, &without);
}

#[test]
fn values_of_a_float_that_a_dump_rounds_are_a_gap_and_others_are_compared() {
    let server = Server::start();
    server.sql(
        "CREATE TABLE shop.t (f FLOAT); INSERT INTO shop.t VALUES (1.5), (0.1), (-123456), (NULL)",
    );
    let (memory, gaps) = captured(&server.driver());
    assert_eq!(gaps, []);
    assert!(!memory.text("catalog.json").contains("\"checksum\": null"));
    server.sql("INSERT INTO shop.t VALUES (16777216)");
    let (memory, gaps) = captured(&server.driver());
    assert!(gaps[0].0.contains("shop.t.f") && gaps[0].1.contains("1 of them"), "{gaps:?}");
    restore(&server.driver(), &memory);
}

#[test]
fn a_row_that_the_server_accepts_no_more_is_refused_with_what_to_set() {
    let server = Server::start_with(&["--skip-networking", "--max-allowed-packet=64M"]);
    server
        .sql("CREATE TABLE shop.t (b LONGBLOB); INSERT INTO shop.t VALUES (REPEAT('x', 20000000))");
    let (memory, _) = captured(&server.driver());
    server.sql("SET GLOBAL max_allowed_packet = 33554432");
    let said = told(&server.driver().restore().plan("t0ken", &memory).unwrap_err());
    let (_, statement) = said.split_once("hint: ").unwrap();
    server.sql(statement.split(',').next().unwrap());
    server.sql("TRUNCATE TABLE shop.t");
    restore(&server.driver(), &memory);
    assert_eq!(server.ask("SELECT MD5(b) = MD5(REPEAT('x', 20000000)) FROM shop.t"), "1");
}

#[test]
fn versions_of_transactions_and_rows_kept_elsewhere_are_gaps() {
    let server = Server::start();
    server.sql("USE shop; CREATE TABLE t (x INT, a BIGINT UNSIGNED GENERATED ALWAYS AS ROW START, \
        b BIGINT UNSIGNED GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (a, b)) WITH SYSTEM VERSIONING; \
        INSERT INTO t (x) VALUES (1); UPDATE t SET x = 2; \
        CREATE TABLE m1 (a INT) ENGINE=MyISAM; CREATE TABLE m (a INT) ENGINE=MERGE UNION=(m1)");
    let (_, gaps) = captured(&server.driver());
    assert!(gaps.iter().any(|(what, _)| what.contains("history of the table shop.t")), "{gaps:?}");
    assert!(gaps.iter().any(|(what, _)| what.contains("rows of the table shop.m")), "{gaps:?}");
    server.sql("DROP TABLE shop.m");
    let (memory, _) = captured(&server.driver());
    restore(&server.driver(), &memory);
    assert_eq!(server.ask("SELECT x FROM shop.t"), "2");
}

#[test]
fn five_hundred_tables_are_captured_and_restored() {
    let server = Server::start();
    let mut session = server.root();
    for number in 0..500 {
        session
            .query_drop(format!("CREATE TABLE shop.t{number} (id INT PRIMARY KEY, n INT)"))
            .unwrap();
        session.query_drop(format!("INSERT INTO shop.t{number} VALUES ({number}, 1)")).unwrap();
    }
    let memory = capture(&server.driver(), || server.sql("INSERT INTO shop.t499 VALUES (-1, 1)"));
    server.sql("DROP TABLE shop.t7");
    restore(&server.driver(), &memory);
    let sum = "SELECT CONCAT(COUNT(*), '/', SUM(table_rows)) FROM information_schema.tables WHERE table_schema = 'shop'";
    assert!(server.ask(sum).starts_with("500/"));
    assert_eq!(server.ask("SELECT COUNT(*) FROM shop.t499"), "1");
}
