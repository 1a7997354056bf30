-- Rows: checks that no synthetic row may fail, and that some do.
{{ config(group='decode') }}
select * from {{ ref('quality_report') }}
where verdict = 'failed' and severity = 'fatal'
