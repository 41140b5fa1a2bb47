-- what cxrnode 0.1.0 itself wrote: its tables, its rows, its user_version
BEGIN TRANSACTION;
CREATE TABLE delivery (
	result_uid VARCHAR(64) NOT NULL, 
	destination VARCHAR(128) NOT NULL, 
	status VARCHAR(64) NOT NULL, 
	delivered INTEGER NOT NULL, 
	PRIMARY KEY (result_uid, destination), 
	FOREIGN KEY(result_uid) REFERENCES result (sop_instance_uid)
);
INSERT INTO "delivery" VALUES('2.25.1','PACS@127.0.0.1:104','0x0000',1);
INSERT INTO "delivery" VALUES('2.25.2','PACS@127.0.0.1:104','0xA700',0);
CREATE TABLE instance (
	id INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	location JSON NOT NULL, 
	study_instance_uid VARCHAR(64), 
	series_instance_uid VARCHAR(64), 
	sop_instance_uid VARCHAR(64), 
	pixel_digest VARCHAR(64), 
	header BLOB, 
	PRIMARY KEY (id), 
	UNIQUE (path)
);
INSERT INTO "instance" VALUES(1,'a/0.dcm','{"path": "/archive/a/0.dcm"}','1.2.0','1.2.0.7','1.2.0.7.1','1111111111111111111111111111111111111111111111111111111111111111',X'0800160055491A00312E322E3834302E31303030382E352E312E342E312E312E31000800180055490A00312E322E302E372E31000800600043530200435220000D0055490600312E322E3000');
INSERT INTO "instance" VALUES(2,'a/1.dcm','{"path": "/archive/a/1.dcm"}','1.2.0','1.2.0.7','1.2.0.7.2','2222222222222222222222222222222222222222222222222222222222222222',X'0800160055491A00312E322E3834302E31303030382E352E312E342E312E312E31000800180055490A00312E322E302E372E32000800600043530200435220000D0055490600312E322E3000');
INSERT INTO "instance" VALUES(3,'a/2.dcm','{"path": "/archive/a/2.dcm"}','1.2.1','1.2.1.7','1.2.1.7.3','3333333333333333333333333333333333333333333333333333333333333333',X'0800160055491A00312E322E3834302E31303030382E352E312E342E312E312E31000800180055490A00312E322E312E372E33000800600043530200435220000D0055490600312E322E3100');
INSERT INTO "instance" VALUES(4,'a/3.dcm','{"path": "/archive/a/3.dcm"}','1.2.1','1.2.1.7','1.2.1.7.4','4444444444444444444444444444444444444444444444444444444444444444',X'0800160055491A00312E322E3834302E31303030382E352E312E342E312E312E31000800180055490A00312E322E312E372E34000800600043530200435220000D0055490600312E322E3100');
INSERT INTO "instance" VALUES(5,'a/4.dcm','{"path": "/archive/a/4.dcm"}','1.2.2','1.2.2.7','1.2.2.7.5','5555555555555555555555555555555555555555555555555555555555555555',X'0800160055491A00312E322E3834302E31303030382E352E312E342E312E312E31000800180055490A00312E322E322E372E35000800600043530200435220000D0055490600312E322E3200');
INSERT INTO "instance" VALUES(6,'a/5.dcm','{"path": "/archive/a/5.dcm"}','1.2.2',NULL,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(7,'a/notes.txt','{"path": "/archive/a/notes.txt"}',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE job (
	id INTEGER NOT NULL, 
	study_instance_uid VARCHAR(64), 
	state VARCHAR(16) NOT NULL, 
	outcome VARCHAR(16), 
	reason VARCHAR(32), 
	detail TEXT, 
	class_index INTEGER, 
	probabilities JSON, 
	cam_max FLOAT, 
	engine TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(id) REFERENCES instance (id)
);
INSERT INTO "job" VALUES(1,'1.2.0','reported','analysed',NULL,NULL,0,'[0.93, 0.05, 0.02]',1.5,'cpu');
INSERT INTO "job" VALUES(2,'1.2.0','reported','analysed',NULL,NULL,0,'[0.93, 0.05, 0.02]',1.5,'cpu');
INSERT INTO "job" VALUES(3,'1.2.1','analysed','not_analysed','lateral','ViewPosition=LL',NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(4,'1.2.1','analysed','analysed',NULL,NULL,0,'[0.93, 0.05, 0.02]',1.5,'cpu');
INSERT INTO "job" VALUES(5,'1.2.2','analysed','analysed',NULL,NULL,0,'[0.93, 0.05, 0.02]',1.5,'cpu');
INSERT INTO "job" VALUES(6,'1.2.2','received',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "job" VALUES(7,NULL,'reported','not_analysed','not_dicom','',NULL,NULL,NULL,NULL);
CREATE TABLE ledger (
	seq INTEGER NOT NULL, 
	at VARCHAR(40) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	actor VARCHAR(64) NOT NULL, 
	study_instance_uid VARCHAR(64), 
	detail TEXT NOT NULL, 
	prev_hash VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (hash)
);
INSERT INTO "ledger" VALUES(1,'2026-11-22T03:08:34.001+00:00','run_started','run-batch',NULL,'{"archives":["/archive"]}','0000000000000000000000000000000000000000000000000000000000000000','aa53d0e1ce0d4f05353d1e8ddad02083c845e9c25c9194a52f51d4a0f5d9e549');
INSERT INTO "ledger" VALUES(2,'2026-11-22T03:08:34.007+00:00','not_analysed','run-batch',NULL,'{"path":"a/notes.txt","reason":"not_dicom","why":""}','aa53d0e1ce0d4f05353d1e8ddad02083c845e9c25c9194a52f51d4a0f5d9e549','281a3c975a19cac8efd0883cee560019b7979c6f6b12976dec2e21eb5e0d295e');
INSERT INTO "ledger" VALUES(3,'2026-11-22T03:08:34.015+00:00','report_made','run-batch','1.2.0','{"object":"capture","sha256":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","sop_instance_uid":"2.25.1"}','281a3c975a19cac8efd0883cee560019b7979c6f6b12976dec2e21eb5e0d295e','7c5c7c20f20c8589e5a7ddebbb9fbb3a14666f9e5a88ece37836557a7cc18b42');
INSERT INTO "ledger" VALUES(4,'2026-11-22T03:08:34.016+00:00','analysed','run-batch','1.2.0','{"engine":"cpu","path":"a/0.dcm","pixel_digest":"1111111111111111111111111111111111111111111111111111111111111111","probabilities":[0.93,0.05,0.02],"sop_instance_uid":"1.2.0.7.1"}','7c5c7c20f20c8589e5a7ddebbb9fbb3a14666f9e5a88ece37836557a7cc18b42','f5f8004eec05a5e3e1fb0e6be1d803cef00708b452441571d43d6c999059dcca');
INSERT INTO "ledger" VALUES(5,'2026-11-22T03:08:34.018+00:00','report_made','run-batch','1.2.0','{"object":"capture","sha256":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","sop_instance_uid":"2.25.2"}','f5f8004eec05a5e3e1fb0e6be1d803cef00708b452441571d43d6c999059dcca','81db10664704960d7dbaa87e585f19c36128f98f4c1c5ab942d1fb011b4ee471');
INSERT INTO "ledger" VALUES(6,'2026-11-22T03:08:34.019+00:00','analysed','run-batch','1.2.0','{"engine":"cpu","path":"a/1.dcm","pixel_digest":"2222222222222222222222222222222222222222222222222222222222222222","probabilities":[0.93,0.05,0.02],"sop_instance_uid":"1.2.0.7.2"}','81db10664704960d7dbaa87e585f19c36128f98f4c1c5ab942d1fb011b4ee471','48aeba15472eeac69d291e97760b800388b77d84d1525d02764f2e81a356388a');
INSERT INTO "ledger" VALUES(7,'2026-11-22T03:08:34.021+00:00','not_analysed','run-batch','1.2.1','{"path":"a/2.dcm","pixel_digest":"3333333333333333333333333333333333333333333333333333333333333333","reason":"lateral","sop_instance_uid":"1.2.1.7.3","why":"ViewPosition=LL"}','48aeba15472eeac69d291e97760b800388b77d84d1525d02764f2e81a356388a','48c01815c91ae0e7977ab328e89081ce3dff17c39ca2221a2d8d898a35c13521');
INSERT INTO "ledger" VALUES(8,'2026-11-22T03:08:34.023+00:00','report_made','run-batch','1.2.1','{"object":"capture","sha256":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","sop_instance_uid":"2.25.4"}','48c01815c91ae0e7977ab328e89081ce3dff17c39ca2221a2d8d898a35c13521','3c5e4ab5d3bf08b3560c010bf47a7a86e6d82f0631eb23fc1c6409a0b1fed5b1');
INSERT INTO "ledger" VALUES(9,'2026-11-22T03:08:34.023+00:00','analysed','run-batch','1.2.1','{"engine":"cpu","path":"a/3.dcm","pixel_digest":"4444444444444444444444444444444444444444444444444444444444444444","probabilities":[0.93,0.05,0.02],"sop_instance_uid":"1.2.1.7.4"}','3c5e4ab5d3bf08b3560c010bf47a7a86e6d82f0631eb23fc1c6409a0b1fed5b1','fb8eeb493c30077b00fe2c638bf2bbde2615e10406948a9a9d83909caf1ceba1');
INSERT INTO "ledger" VALUES(10,'2026-11-22T03:08:34.025+00:00','report_made','run-batch','1.2.2','{"object":"capture","sha256":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","sop_instance_uid":"2.25.5"}','fb8eeb493c30077b00fe2c638bf2bbde2615e10406948a9a9d83909caf1ceba1','c27cf0fca1d6fc43dd0a4728e49794b0a9c2c1c2ae1b0922f77852e323518df6');
INSERT INTO "ledger" VALUES(11,'2026-11-22T03:08:34.026+00:00','analysed','run-batch','1.2.2','{"engine":"cpu","path":"a/4.dcm","pixel_digest":"5555555555555555555555555555555555555555555555555555555555555555","probabilities":[0.93,0.05,0.02],"sop_instance_uid":"1.2.2.7.5"}','c27cf0fca1d6fc43dd0a4728e49794b0a9c2c1c2ae1b0922f77852e323518df6','1f38f35062c91beafbdc4c11ee8efe1392d97aec74a86d5bf3289252f922af69');
INSERT INTO "ledger" VALUES(12,'2026-11-22T03:08:34.028+00:00','report_made','run-batch','1.2.0','{"object":"sr","sha256":"efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef","sop_instance_uid":"2.25.100"}','1f38f35062c91beafbdc4c11ee8efe1392d97aec74a86d5bf3289252f922af69','3292aadbff6c3e9fd88a2cd92d6fd69232dd0f06d8fda80c6cbdca74a92c0278');
INSERT INTO "ledger" VALUES(13,'2026-11-22T03:08:34.033+00:00','delivered','run-batch','1.2.0','{"destination":"PACS@127.0.0.1:104","sop_instance_uid":"2.25.1","status":"0x0000"}','3292aadbff6c3e9fd88a2cd92d6fd69232dd0f06d8fda80c6cbdca74a92c0278','c0c0fad8c609f9edc6bbb086aed36f3c1893549c21b9280ab2365d232730c6fb');
INSERT INTO "ledger" VALUES(14,'2026-11-22T03:08:34.034+00:00','delivery_failed','run-batch','1.2.0','{"destination":"PACS@127.0.0.1:104","sop_instance_uid":"2.25.2","status":"0xA700"}','c0c0fad8c609f9edc6bbb086aed36f3c1893549c21b9280ab2365d232730c6fb','4aa928ad0d12e83182f99f12bd691101c05a87aab628c5603e5d69ff1e749f2d');
CREATE TABLE result (
	id INTEGER NOT NULL, 
	sop_instance_uid VARCHAR(64) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	study_instance_uid VARCHAR(64) NOT NULL, 
	instance_id INTEGER, 
	sop_class_uid VARCHAR(64) NOT NULL, 
	path TEXT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (sop_instance_uid), 
	FOREIGN KEY(instance_id) REFERENCES instance (id)
);
INSERT INTO "result" VALUES(1,'2.25.1','capture','1.2.0',1,'1.2.840.10008.5.1.4.1.1.7','dicom/2.25.1.dcm','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd');
INSERT INTO "result" VALUES(2,'2.25.2','capture','1.2.0',2,'1.2.840.10008.5.1.4.1.1.7','dicom/2.25.2.dcm','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd');
INSERT INTO "result" VALUES(3,'2.25.4','capture','1.2.1',4,'1.2.840.10008.5.1.4.1.1.7','dicom/2.25.4.dcm','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd');
INSERT INTO "result" VALUES(4,'2.25.5','capture','1.2.2',5,'1.2.840.10008.5.1.4.1.1.7','dicom/2.25.5.dcm','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd');
INSERT INTO "result" VALUES(5,'2.25.100','sr','1.2.0',NULL,'1.2.840.10008.5.1.4.1.1.88.33','dicom/2.25.100.dcm','efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef');
CREATE TABLE settings (
	"key" VARCHAR(64) NOT NULL, 
	value JSON NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "settings" VALUES('run','{"started_at": "2026-11-21T22:15:07+01:00", "archives": ["/archive"], "bundle": "abababababababababababababababababababababababababababababababab"}');
CREATE INDEX ix_instance_sop ON instance (sop_instance_uid, pixel_digest);
CREATE INDEX ix_ledger_study ON ledger (study_instance_uid);
CREATE INDEX ix_job_state ON job (state, id);
CREATE INDEX ix_job_study ON job (study_instance_uid, state);
CREATE INDEX ix_result_study ON result (study_instance_uid, kind);
CREATE INDEX ix_result_instance ON result (instance_id);
CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
COMMIT;
PRAGMA user_version = 1;
